"""A run from Python: the same as from the command line, whole or step by step."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import read_losses

import minimind.run
from minimind.cli.train import next_command
from minimind.errors import ConfigError
from minimind.inference.load import chat_notice
from minimind.llm import LLM
from minimind.lora.folder import find_model_folder, load_model_folder
from minimind.run import Run
from minimind.runtime.ranks import free_port

SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "seq_len": 64}
OPTIONS: dict[str, Any] = {**SMALL, "max_steps": 4, "train_batch_size": 4, "eval_every": 2}
pytestmark = pytest.mark.usefixtures("no_launcher")


def test_keyword_arguments_and_flags_mean_the_same(tmp_path: Path):
    given = Run.resolve(
        model="tiny",
        data=tmp_path / "a.jsonl",
        learning_rate=0.01,
        max_steps=3,
        hidden_size=32,
        lr_factors={"norm": 0.5},
        set={"ds_config.gradient_accumulation_steps": 2, "micro_batch_size": 2},
        output_dir=tmp_path / "run",
        seed=None,
    )
    flags = ["--model", "tiny", "--data", str(tmp_path / "a.jsonl"), "--learning_rate", "0.01"]
    flags += ["--max_steps", "3", "--set", "hidden_size=32", "--set", 'lr_factors={"norm": 0.5}']
    flags += ["--set", "ds_config.gradient_accumulation_steps=2", "--set", "micro_batch_size=2"]
    flags += ["--output_dir", str(tmp_path / "run")]
    assert given.resolved == Run.resolve(flags).resolved


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"set": ["a=1"]}, "must be a mapping"),
        ({"ds_config": {"bf16": {}}}, r'must be a string; set=\{"ds_config.KEY"'),
        ({"data": [5]}, "data=.*must be a string or a list of strings"),
        ({"resume": "yes"}, "resume='yes': must be True or False"),
        ({"max_steps": 3, "dry_run": True}, r"dry_run=True: Run\.resolve"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'; it must be a valid number"),
    ],
)
def test_arguments_that_cannot_be(options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        Run.resolve(**options)


def test_steps_one_by_one_are_those_of_training(tmp_path: Path):
    folder = minimind.run.train(**OPTIONS, output_dir=tmp_path / "run")
    assert folder == tmp_path / "run"
    stepped = Run.resolve(**OPTIONS, output_dir=tmp_path / "nothing").build()
    found = []
    for _ in range(4):
        stats = stepped.step()
        found.append((stats.step, float(f"{stats.loss:.6f}")))
    assert found == [row[:2] for row in read_losses(folder)]
    with pytest.raises(RuntimeError, match="all 4 steps"):
        stepped.step()
    _, saved = load_model_folder(find_model_folder(folder / "checkpoints" / "latest"))
    weights = stepped.loop.engine.full_weights()
    assert weights.keys() == saved.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, saved[name]), name
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(RuntimeError, match="trained once"):
        stepped.train()


def test_a_run_says_what_it_will_do_before_it_builds_anything():
    run = Run.resolve(**OPTIONS)
    assert "pretrain of tiny" in run.describe()
    assert run.total_steps == 4
    assert run.folder is None


def test_a_run_on_sample_data_by_name(tmp_path: Path):
    options = {**OPTIONS, "max_steps": 2, "data": ["sample:text:2", "sample:text:1"]}
    run = Run.resolve(**options, val_data="sample:text", output_dir=tmp_path / "run")
    assert run.train()
    again = Run.resolve(**OPTIONS | {"data": "sample:text"})
    assert again.loader.fingerprint == Run.resolve(**OPTIONS).loader.fingerprint


def test_the_next_command_teaches_a_model_of_text_and_opens_a_chat_with_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    text, chat = tmp_path / "text", tmp_path / "chat"
    options = {**OPTIONS, "max_steps": 1, "eval_every": 0}
    run = Run.resolve(**options, output_dir=text)
    assert run.train()
    monkeypatch.setattr(sys, "argv", ["launch/train.py"])
    teach = f"--stage sft --from_checkpoint {text}"
    assert next_command(run).endswith(f": python launch/train.py {teach}")
    assert str(chat_notice(text)).endswith(teach)
    caplog.clear()
    llm = LLM(text)
    for _ in range(2):
        llm.chat("q", max_new_tokens=1)
    assert [record.getMessage() for record in caplog.records] == [chat_notice(text)]
    sized = {"max_steps": 1, "seq_len": 64, "train_batch_size": 4}
    run = Run.resolve(**sized, stage="sft", from_checkpoint=text, output_dir=chat)
    assert run.train()
    for program in ("minimind train", "bench/train/elastic_rank.py"):
        monkeypatch.setattr(sys, "argv", [program])
        assert next_command(run) == f"talk to it: minimind chat --checkpoint {chat}"
    assert chat_notice(chat) is None


def test_a_run_goes_on_from_python_too(tmp_path: Path):
    whole = minimind.run.train(**OPTIONS, output_dir=tmp_path / "whole")
    first = {**OPTIONS, "max_steps": 2}
    minimind.run.train(**first, output_dir=tmp_path / "parts")
    again = minimind.run.train(resume=True, output_dir=tmp_path / "parts", max_steps=4)
    assert [step for step, *_ in read_losses(again)] == [step for step, *_ in read_losses(whole)]


def test_a_run_is_trained_once_and_what_is_out_of_order_says_so(tmp_path: Path):
    run = Run.resolve(**OPTIONS, output_dir=tmp_path / "run")
    with pytest.raises(RuntimeError, match=r"build\(\) comes first"):
        run.step()
    assert run.train()
    for again in (run.train, run.step):
        with pytest.raises(RuntimeError, match="resolve another"):
            again()
    with pytest.raises(TypeError, match="not both"):
        Run.resolve(["--max_steps", "3"], seed=1)
    with pytest.raises(TypeError, match="a list of flags"):
        Run.resolve("sft")


def test_runs_one_after_another_leave_no_memory_behind(tmp_path: Path):
    alive, peaks = [], []
    for number in range(3):
        run = Run.resolve(**OPTIONS, output_dir=tmp_path / str(number))
        assert run.train()
        alive.append(weakref.ref(run.loop.engine.module))
        peaks.append(run.loop.memory.peak_bytes)
        run.close()
        del run
    gc.collect()
    assert [module() for module in alive] == [None] * 3
    assert peaks[2] == pytest.approx(peaks[1], rel=0.02)


def test_data_of_another_is_stepped_and_not_trained(tmp_path: Path):
    own = Run.resolve(**OPTIONS)
    run = Run.resolve(**OPTIONS).build(own.loader)
    assert run.step().step == 1
    with pytest.raises(RuntimeError, match="on its own data"):
        run.train()
    with pytest.raises(ConfigError, match="give max_steps"):
        Run.resolve(**{**OPTIONS, "max_steps": None}).build(own.loader)


TWO_RANKS = """
import os, sys
from minimind.errors import MiniMindError
from minimind.run import Run

def resolve(**more):
    return Run.resolve(**{options}, **more)

def refused(**more):
    try:
        resolve(**more).train()
    except MiniMindError as error:
        print(error, file=sys.stderr, flush=True)

is_main = os.environ["RANK"] == "0"
run = resolve(output_dir={folder!r})
if is_main:
    run.describe()
assert run.train()
os.environ["MINIMIND_PRECISION"] = "fp32" if is_main else "bf16"
refused()
os.environ["MINIMIND_PRECISION"] = "fp32"
refused(data={data!r} if is_main else "nowhere.jsonl")
os._exit(0)  # as the command ends a rank
"""


def test_two_ranks_train_or_say_together_why_not(tmp_path: Path):
    """One pair of processes: what one rank alone asked before disturbs no other, and ranks that
    differ in precision or data say so on both."""
    data = tmp_path / "here.jsonl"
    data.write_text('{"text": "one two three four"}\n' * 20, "utf-8")
    code = TWO_RANKS.format(options=OPTIONS, folder=str(tmp_path / "run"), data=str(data))
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    said = [rank.communicate(timeout=300)[1] for rank in ranks]
    for rank, text in zip(ranks, said, strict=True):
        assert rank.returncode == 0, text
        assert "rank 1 has another precision than rank 0 (bf16 and" in text
        assert "rank 1: nowhere.jsonl: no such file" in text
    assert [step for step, *_ in read_losses(tmp_path / "run")] == [1, 2, 3, 4]


def test_a_run_in_another_thread_and_one_that_is_closed(tmp_path: Path):
    done: list[Path] = []
    options = {**OPTIONS, "output_dir": tmp_path / "run"}
    thread = threading.Thread(target=lambda: done.append(minimind.run.train(**options)))
    thread.start()
    thread.join()
    assert done == [tmp_path / "run"]
    run = Run.resolve(**OPTIONS).build()
    run.close()
    for ask in (run.build, run.step, run.train):
        with pytest.raises(RuntimeError, match="closed: resolve another"):
            ask()
