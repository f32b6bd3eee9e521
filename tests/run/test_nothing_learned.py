"""Runs that could learn nothing: a dry run and a real one refuse them alike, with status 2, before
anything is built. Where only a part is lost, the banner says how much."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from small_folders import small_folder

from minimind.errors import ConfigError
from minimind.run.run import Run

USER = {"role": "user", "content": "q"}
LONG = {"role": "user", "content": "long " * 300}
TALK = "one two three " * 200


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


DATA: dict[str, list[dict[str, Any]]] = {
    "chats": [{"conversations": [USER, answer(f"a {n}")]} for n in range(8)],
    "long_chats": [{"conversations": [LONG, answer("a")]}] * 3,
    "some_long_chats": [
        {"conversations": [LONG if n < 2 else USER, answer("a")]} for n in range(8)
    ],
    "long_pairs": [{"chosen": [LONG, answer("a")], "rejected": [LONG, answer("b")]}] * 3,
    "pairs_cut_alike": [
        {"chosen": [USER, answer(TALK + "a")], "rejected": [USER, answer(TALK + "b")]}
    ],
    "one_answer": [{"conversations": [USER, answer("a")], "label": True}],
    "good_answers": [{"conversations": [USER, answer(f"a {n}")], "label": True} for n in range(8)],
    "prompts": [{"conversations": [USER]}] * 3,
    "tasks": [{"conversations": [USER], "gt": 1}] * 3,
}
SHORT = "--seq_len 64 --max_steps 9"
SFT = "--stage sft --from_checkpoint small --data chats.jsonl"
ADAPTER = "--stage lora --from_checkpoint small --data chats.jsonl"
DPO = f"--stage dpo --from_checkpoint small {SHORT}"
KTO = f"--stage kto --from_checkpoint small {SHORT}"
GRPO = f"--stage grpo --from_checkpoint small {SHORT} --data tasks.jsonl"
REFUSED: dict[str, tuple[str, str]] = {
    "no target": (f"{SFT} {SHORT} --data long_chats.jsonl", "the training data has no target left"),
    "no target of adapters": (
        f"{ADAPTER} {SHORT} --data long_chats.jsonl",
        "each of its 3 rows is cut to 64 tokens before there is any. Raise --seq_len",
    ),
    "nothing to validate on": (
        f"{SFT} {SHORT} --val_data long_chats.jsonl",
        "the validation data has no target left",
    ),
    "no matrix for Muon": (
        f"{ADAPTER} {SHORT} --set optimizer=Muon",
        "Muon is for the model's matrices, and this run trains none of them",
    ),
    "no pair": (f"{DPO} --data long_pairs.jsonl", "the training data has no target left"),
    "no pair that differs": (
        f"{DPO} --data pairs_cut_alike.jsonl",
        "no pair differs within 64 tokens",
    ),
    "no answer to compare": (
        f"{KTO} --data one_answer.jsonl",
        "no row holds two different answers",
    ),
    "no answer that counts": (
        f"{KTO} --data good_answers.jsonl --set desirable_weight=0",
        "there are only answers of weight 0",
    ),
    "nothing that is right": (f"{GRPO} --data prompts.jsonl", 'neither "gt" nor "answer"'),
    "no reward": (f'{GRPO} --set rewards={{"exact_match":0}}', "every weight is 0"),
    "no choice of answers": (f"{GRPO} --set top_k=1", "all answers to a prompt would be the same"),
    "no rate": (f"{SFT} --learning_rate 0", "learning_rate is 0.0; it must be above 0"),
    "no rate in the JSON": (
        f"{SFT} --set ds_config.optimizer.params.lr=0",
        "learning_rate is 0.0; it must be above 0",
    ),
    "all weights frozen": (
        f'{SFT} --set lr_factors={{"":0}}',
        "leaves every trained weight a learning rate of 0",
    ),
    "adapters that never act": (
        f'{ADAPTER} --set lora_alphas={{"q_proj":0}}',
        "lora_alphas holds 0 at q_proj",
    ),
    "no adapter": (f'{ADAPTER} --set lora_ranks={{"default":0}}', "no linear gets an adapter"),
    "data to validate on alone": (
        "--stage sft --from_checkpoint small --val_data chats.jsonl",
        "--val_data without --data would validate on yours and train on the project's sample",
    ),
    "warm-up alone": (
        f"{SFT} --max_steps 9 --set warmup_steps=9",
        "warmup_steps is 9, and the run has 9 steps",
    ),
    "warm-up of the JSON alone": (
        f'{SFT} --max_steps 9 --set ds_config.scheduler={{"type":"WarmupLR"}}',
        "WarmupLR of the DeepSpeed JSON warms up for 1,000 steps, and the run has 9",
    ),
    "a schedule that ends early": (
        f"{SFT} --max_steps 9 --set ds_config.scheduler="
        '{"type":"WarmupDecayLR","params":{"total_num_steps":8,"warmup_num_steps":2}}',
        "total_num_steps is 8, and the run has 9 steps",
    ),
    "a schedule without a peak": (
        f"{SFT} --max_steps 9 --set ds_config.scheduler="
        '{"type":"WarmupLR","params":{"warmup_max_lr":0,"warmup_num_steps":2}}',
        "has a peak of 0",
    ),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    small_folder(folder / "small")
    for name, rows in DATA.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def _at_home(home: Path, monkeypatch: pytest.MonkeyPatch, no_launcher: None) -> None:
    monkeypatch.chdir(home)


@pytest.mark.parametrize("mode", ["", "--dry_run"])
@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_before_anything_is_built(refused: Callable[..., str], name: str, mode: str):
    command, words = REFUSED[name]
    assert words in refused(command, mode)
    assert not Path("runs").exists()


def described(command: str, more: Sequence[str] = ()) -> str:
    run = Run.resolve([*command.split(), *more])
    run.check()
    return run.describe()


def test_what_is_lost_in_part_is_said(home: Path):
    said = described(f"{SFT} {SHORT} --data some_long_chats.jsonl")
    assert "2 documents to fit a row; 2 of 8 conversations have no target left" in said
    assert "\ncut " not in described(f"{SFT} {SHORT}")


def test_what_is_validated_on_is_said(home: Path):
    assert "validated  never: there is no --val_data" in described(f"{SFT} {SHORT}")
    whole = described(f"{SFT} {SHORT} --val_data chats.jsonl")
    rows = int(whole.partition("on all ")[2].split()[0])
    assert rows > 1
    part = described(f"{SFT} {SHORT} --val_data chats.jsonl --set eval_rows=1")
    assert f"every 100 steps on 1 of {rows} rows" in part
    assert "--set eval_rows=0 takes all" in part
    prompts = described(f"{GRPO} --val_data tasks.jsonl --set eval_rows=2")
    assert "on 2 of 3 prompts" in prompts


def test_a_run_shorter_than_the_wait_for_validation_says_so(home: Path):
    command = f"{SFT} {SHORT} --val_data chats.jsonl --set eval_rows=1 --set eval_every="
    assert "; the run has 9 steps, so at its end alone" in described(command + "10")
    assert "at its end alone" not in described(command + "9")


def test_validation_on_the_training_rows_is_said(home: Path, caplog: pytest.LogCaptureFixture):
    Path("same.jsonl").write_bytes(Path("chats.jsonl").read_bytes())
    described(f"{SFT} {SHORT} --val_data some_long_chats.jsonl")
    assert "which are trained on" not in caplog.text
    described(f"{SFT} {SHORT} --val_data same.jsonl")
    assert "same.jsonl holds the rows of chats.jsonl, which are trained on" in caplog.text


def test_ranks_that_add_nothing_are_said(home: Path):
    # q_proj has 48 rows and 32 columns.
    command = f"{ADAPTER} {SHORT} --set lora_ranks="
    assert "adapters   2 of 2 have a rank above" in described(command + '{"q_proj":33}')
    assert "33 of model.layers.0.self_attn.q_proj above 32" in described(command + '{"q_proj":33}')
    assert "\nadapters" not in described(command + '{"q_proj":32}')


def test_pairs_cut_alike_still_teach_orpo(home: Path):
    described(f"{DPO} --data pairs_cut_alike.jsonl --set loss_type=orpo")
    with pytest.raises(ConfigError, match="no pair differs"):
        described(f"{DPO} --data pairs_cut_alike.jsonl --set loss_type=simpo")
