"""Models that the original's own code trains: in, served, and out again into that code.

git clone https://github.com/jingyaogong/minimind original
MINIMIND_ORIGINAL=original python -m pytest tests/interop/test_originals_own_code.py -m slow -s
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import torch
from typed_commands import Commands

CLONE = os.environ.get("MINIMIND_ORIGINAL")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CLONE is None, reason="needs a clone of the original, MINIMIND_ORIGINAL"),
]

COMMITS = {
    "2504": "d9453ed9a35847d7363a4b16b8a84274941c3609",
    "2601": "11a44340ba3cf2e2aeb3619b454d603ffb830667",
    "3": "d65ef2c00ebc6082f9df11541e1b191655eddb00",
}
"""The last commits of the first two generations, and one of the third."""
AS_ITS_SCRIPTS_ASK = {"2504": {}, "2601": {"enable_thinking": True}, "3": {}}
"""Variables of the template with which a prompt is that of the original's own scripts. Those of
2601 say nothing of thinking, and its template then leaves out an empty thought."""
HIDDEN, LAYERS, NUM_TOKENS = 128, 2, 16
QUESTION = "What comes after 7?"

READ = """
import json
import sys

import torch
from transformers import AutoTokenizer

file, sizes, tokenizer, question, num_tokens = sys.argv[1:]
try:
    from model.model_minimind import MiniMindConfig, MiniMindForCausalLM
except ImportError:
    from model.LMConfig import LMConfig as MiniMindConfig
    from model.model import MiniMindLM as MiniMindForCausalLM
model = MiniMindForCausalLM(MiniMindConfig(**json.loads(sizes))).eval()
model.load_state_dict(torch.load(file, weights_only=True), strict=True)
tokenizer = AutoTokenizer.from_pretrained(tokenizer)
turns = [{"role": "user", "content": question}]
text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
ids = tokenizer(text).input_ids
num_prompt = len(ids)
with torch.no_grad():
    while len(ids) < num_prompt + int(num_tokens) and ids[-1] != tokenizer.eos_token_id:
        logits = model(torch.tensor([ids])).logits[0]
        ids.append(int(logits[-1].argmax()))
torch.save(logits, "logits.pt")
print(json.dumps({"prompt": ids[:num_prompt], "text": tokenizer.decode(ids[num_prompt:], True)}))
assert not any(name.startswith("minimind") for name in sys.modules)
"""
"""Loads a .pth strictly in the original's code, and answers greedily in fp32."""


def check_out(generation: str, folder: Path) -> None:
    # Its pictures are not needed, and some copies lack them.
    parts = ["train_pretrain.py"] if generation == "2504" else ["trainer", "dataset/lm_dataset.py"]
    command = ["git", "-C", str(CLONE), "archive", COMMITS[generation], "model", *parts]
    files = subprocess.run(command, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(files)) as archive:
        archive.extractall(folder, filter="data")


def train_there(commands: Commands, generation: str, experts: bool) -> Path:
    """Trains by the original's own script; gives the .pth."""
    root = commands.folder / "original"
    # Longer than a row, so that the model does not learn to end at once.
    texts = (" ".join(f"After {n} comes {n + 1}." for n in range(i, i + 20)) for i in range(400))
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    (root / "texts.jsonl").write_text("".join(lines))
    flags = {"data_path": root / "texts.jsonl", "epochs": 1, "batch_size": 8, "max_seq_len": 32}
    flags |= {"accumulation_steps": 1, "save_interval": 50, "log_interval": 25, "num_workers": 0}
    flags |= {"device": "cpu", "dtype": "bfloat16", "learning_rate": 2e-3}
    if generation == "2504":
        flags |= {"dim": HIDDEN, "n_layers": LAYERS}
    else:
        flags |= {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS}
    if experts:
        flags["use_moe"] = 1
    folder = "original" if generation == "2504" else "original/trainer"
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    commands.plain("train_pretrain.py", *words, folder=folder)
    return root / "out" / f"pretrain_{HIDDEN}{'_moe' if experts else ''}.pth"


def read_there(commands: Commands, generation: str, experts: bool, file: Path) -> dict[str, Any]:
    names = ("dim", "n_layers") if generation == "2504" else ("hidden_size", "num_hidden_layers")
    sizes = {names[0]: HIDDEN, names[1]: LAYERS, "use_moe": experts}
    tokenizer = "model/minimind_tokenizer" if generation == "2504" else "model"
    said = commands.plain(
        *("read.py", str(file), json.dumps(sizes), tokenizer, QUESTION, str(NUM_TOKENS)),
        code=READ,
        folder="original",
    )
    logits = torch.load(commands.folder / "original" / "logits.pt", weights_only=True)
    return {**json.loads(said.splitlines()[-1]), "logits": logits}


@pytest.mark.parametrize("experts", [False, True], ids=["dense", "experts"])
@pytest.mark.parametrize("generation", COMMITS)
def test_a_model_of_the_original_comes_in_answers_and_goes_out(
    tmp_path: Path, generation: str, experts: bool
) -> None:
    commands = Commands(tmp_path)
    check_out(generation, tmp_path / "original")
    file = train_there(commands, generation, experts)
    theirs = read_there(commands, generation, experts, file)

    commands.minimind("convert", "--input", str(file), "--to", "minimind", "--output", "ours")
    with commands.server("--checkpoint", "ours", "--dtype", "fp32") as url:
        body: dict[str, Any] = {"messages": [{"role": "user", "content": QUESTION}]}
        body["chat_template_kwargs"] = AS_ITS_SCRIPTS_ASK[generation]
        prompt = httpx.post(f"{url}/tokenize", json=body, timeout=60).json()
        assert prompt["tokens"] == theirs["prompt"]
        body |= {"max_tokens": NUM_TOKENS, "temperature": 0}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
        print(answer.text)  # noqa: T201
        message = answer.json()["choices"][0]["message"]
        assert message["content"].strip() == theirs["text"].strip()

    back = ["--to", "pth", "--generation", generation, "--output", "back.pth"]
    commands.minimind("convert", "--input", "ours", *back)
    ours = read_there(commands, generation, experts, tmp_path / "back.pth")
    assert torch.equal(ours["logits"], theirs["logits"])
    before, after = (torch.load(path, weights_only=True) for path in (file, tmp_path / "back.pth"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
