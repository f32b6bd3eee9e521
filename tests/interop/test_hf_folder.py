"""Hugging Face folders: what transformers and huggingface_hub make of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from small_models import EXPERTS, logits_of, pack, random_documents, random_model, small_config
from torch import Tensor

from minimind.config.model import PRESETS, ModelConfig
from minimind.errors import CheckpointError, ConfigError
from minimind.interop.conversion import convert
from minimind.interop.options import ConvertOptions
from minimind.interop.training_record import read_training
from minimind.model.hf_config import is_own_family, to_hf_config
from minimind.model.state_dict import load_hf_folder, save_hf_folder
from minimind.model.transformer import Transformer
from minimind.samples.text import load_sample_tokenizer

PROMPT = random_documents([23], vocab=97)[0]
VLLM_CLASSES = {"LlamaForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM"}
"""Of vllm/model_executor/models/registry.py, those that compute models like ours."""
OWN = [
    {"num_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "seq_aux": True},
    {"num_experts": 3, "num_experts_per_tok": 1, "mlp_only_layers": (0,)},
    {"num_experts": 3, "n_shared_experts": 2, "norm_topk_prob": False, "use_qk_norm": True},
    {"num_experts": 3, "num_experts_per_tok": 2, "tie_word_embeddings": False},
]


def save(folder: Path, model: Transformer) -> Path:
    save_hf_folder(folder, model.config, dict(model.named_parameters()), torch.float32)
    load_sample_tokenizer().save(folder)
    return folder


def model_of(family: str = "llama", **changes: Any) -> Transformer:
    vocab = load_sample_tokenizer().vocab_size
    return random_model(small_config(family, vocab_size=vocab, **changes)).eval()


def own_logits(model: Transformer, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return logits_of(model, pack([[ids]]))


@pytest.fixture
def remote_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """The option that lets transformers run a folder's code, which it then copies into a cache."""
    import transformers.dynamic_module_utils as modules

    monkeypatch.setattr(modules, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    return {"trust_remote_code": True}


@pytest.mark.parametrize("changes", OWN)
def test_transformers_runs_the_code_of_models_it_has_no_class_for(
    tmp_path: Path, remote_code: dict[str, bool], changes: dict[str, Any]
):
    from transformers import AutoModelForCausalLM

    model = model_of(**changes)
    options = ConvertOptions(allow_custom_code=True, max_shard_bytes=40_000)
    converted = convert(save(tmp_path / "in", model), "hf", tmp_path / "out", options)
    assert [difference.largest for difference in converted.differences] == [0.0, 0.0]
    theirs, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype="float32", **remote_code
    )
    assert not any(report.values()), report
    assert theirs.num_parameters() == model.config.num_parameters
    with torch.no_grad():
        found = theirs.eval()(torch.tensor([PROMPT])).logits[0]
        again = theirs.generate(torch.tensor([PROMPT]), max_new_tokens=6, do_sample=False)[0]
    torch.testing.assert_close(found, own_logits(model, PROMPT), atol=2e-5, rtol=1e-4)
    expected = list(PROMPT)
    while len(expected) < len(again):
        expected.append(int(own_logits(model, expected)[-1].argmax()))
    assert again.tolist() == expected


def test_a_model_without_a_class_is_refused_unless_its_code_is_allowed(tmp_path: Path):
    folder = save(tmp_path / "in", model_of(**OWN[0]))
    with pytest.raises(ConfigError, match="--allow_custom_code") as caught:
        convert(folder, "hf", tmp_path / "out", ConvertOptions())
    assert "--to minimind" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    convert(folder, "minimind", tmp_path / "out", ConvertOptions())
    assert not list((tmp_path / "out").glob("*.py"))


@pytest.mark.parametrize("name", PRESETS)
def test_architectures_are_those_of_vllm_or_of_the_code_beside(name: str):
    config = ModelConfig.from_dict(PRESETS[name], name)
    (architecture,) = to_hf_config(config)["architectures"]
    assert (architecture in VLLM_CLASSES) != is_own_family(config)


@pytest.mark.parametrize("experts", [{}, *EXPERTS[:2]])
def test_shards_and_their_index_hold_the_same_weights(tmp_path: Path, experts: dict[str, Any]):
    model = model_of("qwen3", **experts)
    options = ConvertOptions(max_shard_bytes=30_000, dtype="bf16")
    convert(save(tmp_path / "in", model), "hf", tmp_path / "out", options)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    total = 0
    for file in files:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        size = sum(tensor.nbytes for tensor in tensors.values())
        assert size <= 30_000 or len(tensors) == 1
        assert {name: index["weight_map"][name] for name in tensors} == dict.fromkeys(
            tensors, file.name
        )
        total += size
    assert total == index["metadata"]["total_size"]
    _, weights = load_hf_folder(tmp_path / "out")
    for name, parameter in model.named_parameters():
        assert torch.equal(weights[name], parameter.detach().bfloat16())
    if not experts:  # from_pretrained is slow, and reads shards of every model alike
        from transformers import AutoModelForCausalLM

        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert theirs.dtype == torch.bfloat16


def test_in_and_out_and_in_again_is_the_same_to_the_bit(tmp_path: Path):
    folder = save(tmp_path / "a", model_of("qwen3"))
    convert(folder, "hf", tmp_path / "b", ConvertOptions())
    (tmp_path / "b" / "LICENSE").write_text("mine")
    (tmp_path / "b" / "README.md").write_text("mine too")
    convert(tmp_path / "b", "hf", tmp_path / "c", ConvertOptions(dtype="fp32"))
    first, last = ({f.name: f.read_bytes() for f in (tmp_path / x).iterdir()} for x in "bc")
    assert first == last


@pytest.mark.parametrize("to", ["hf", "pth"])
def test_weights_too_large_for_fp16_are_refused(tmp_path: Path, to: str):
    model = model_of("qwen3")
    with torch.no_grad():
        model.norm.weight[3] = 1e5
    folder = save(tmp_path / "in", model)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight holds 1e\+05.*--dtype bf16"):
        convert(folder, to, tmp_path / "out", ConvertOptions(dtype="fp16"))
    assert not (tmp_path / "out").exists()


def test_the_generation_config_names_the_end_of_a_turn(tmp_path: Path):
    from transformers import GenerationConfig

    convert(save(tmp_path / "in", model_of("qwen3")), "hf", tmp_path / "out", ConvertOptions())
    found = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (found.bos_token_id, found.eos_token_id, found.pad_token_id) == (1, 2, 0)


def checkpoint(run: Path, stage: str, step: int, **given: Any) -> Path:
    """A run's checkpoint with what training writes beside the model."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    save(folder / "model", model_of("qwen3"))
    meta = {
        "stage": stage,
        "step": step,
        "state": {"tokens": 5_000 * step},
        "recipe": {"train_batch_size": 8, "seq_len": 256, "learning_rate": 5e-4},
        "arguments": {"run": given},
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    (run / "metrics.csv").write_text(f"step,loss,val_loss\n1,9.0,\n{step},2.5,2.625\n")
    (folder.parent / "latest").symlink_to(folder.name)
    return run


def test_the_model_card_says_what_the_model_was_trained_on(tmp_path: Path):
    from huggingface_hub import ModelCard

    base = checkpoint(tmp_path / "base", "pretrain", 700)
    data = ["/private/path/news.jsonl:0.7", "b.jsonl"]
    chat = checkpoint(tmp_path / "chat", "sft", 90, from_checkpoint=str(base), data=data)
    convert(chat, "hf", tmp_path / "my-model", ConvertOptions())
    card = ModelCard.load(tmp_path / "my-model" / "README.md")
    assert (card.data.license, card.data.library_name) == ("other", "transformers")
    assert card.data.pipeline_tag == "text-generation"
    assert "# my-model\n" in card.text
    assert "private" not in card.text
    rows = [line for line in card.text.splitlines() if line.startswith(("| pre", "| sft"))]
    assert rows == [
        "| pretrain | MiniMind's sample data | 700 | 3,500,000 | 8 x 256 | 0.0005 | 2.6250 |",
        "| sft | `news.jsonl:0.7`, `b.jsonl` | 90 | 450,000 | 8 x 256 | 0.0005 | 2.6250 |",
    ]


def test_a_run_that_cannot_be_is_not_known(tmp_path: Path):
    folder = checkpoint(tmp_path / "run", "pretrain", 7) / "checkpoints" / "latest"
    assert read_training(folder / "model") is not None
    text = (folder / "meta.json").read_text()
    (folder / "meta.json").write_text(text.replace('"step": 7', '"step": Infinity'))
    assert read_training(folder / "model") is None


def test_without_a_run_the_card_says_that_nothing_is_known(tmp_path: Path):
    folder = save(tmp_path / "in", model_of("qwen3"))
    assert read_training(folder) is None
    convert(folder, "hf", tmp_path / "out", ConvertOptions())
    assert "Not known" in (tmp_path / "out" / "README.md").read_text()
