"""Rehearsing by name, what is found where it was planted, and how it is said."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from empty_rehearsal import NOTHING

from minimind.cli.train import main
from minimind.errors import ConfigError
from minimind.rehearsal import fits, stub
from minimind.rehearsal.fits import check_memory, read_place
from minimind.rehearsal.rehearse import Point, known_device, rehearse, rehearse_all, why_not
from minimind.rehearsal.report import Rehearsal, Wait
from minimind.rehearsal.roofline import estimate, sent_share
from minimind.rehearsal.tally import Work
from minimind.run.arguments import TrainArguments, collect_arguments, parse_arguments
from minimind.run.run import Run
from minimind.runtime import compiler
from minimind.runtime.gpus import GPUS

GIB = 2**30
needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler"
)
SMALL: dict[str, Any] = {"num_hidden_layers": 1, "seq_len": 128, "batch_size": 16}


@needs_compiler
def test_a_run_is_rehearsed_where_it_is_not() -> None:
    run = Run.resolve(**SMALL)
    found = rehearse(run, device="h100", ranks=4)
    assert (found.device, found.world_size) == ("H100", 4)
    assert found.tokens == 16 * 128
    assert found.roofline is not None
    assert found.collectives.keys() == {"all_reduce", "all_gather"}
    text = found.describe()
    assert "none but for the numbers of the step before" in text
    assert "a bound by data sheets" in text
    assert Rehearsal.from_dict(json.loads(json.dumps(dataclasses.asdict(found)))) == found


@needs_compiler
def test_rollouts_are_rehearsed_on_a_cpu() -> None:
    """The C++ that decodes there would read tensors without storage."""
    sizes: dict[str, Any] = {"num_hidden_layers": 1, "batch_size": 2}
    sizes |= {"num_generations": 2, "max_new_tokens": 4}
    run = Run.resolve(stage="grpo", from_checkpoint="none", **sizes)
    assert rehearse(run, device="cpu").peak["rollouts"] > 0


WAITS = {
    "found.total.item()": "item",
    "found.total.detach().cpu()": "blocking copy cuda to cpu",
    "torch.tensor([1.0], device='cuda')": "blocking copy cpu to cuda",
    "torch.ones(3).to('cuda', non_blocking=True)": "copy of pageable memory cpu to cuda",
    "torch.cuda.synchronize()": "device.synchronize",
    "batch.ids_BT[batch.is_token_BT]": "nonzero: its size is read",
    "batch.ids_BT.tolist()": "tolist",
}
PROGRAM = """import json, sys
from minimind.rehearsal import worker
worker.prepare("gpu", sys.argv[1])
import torch
import minimind.stages.pretrain as pretrain
plain = pretrain.Pretrain.loss
def loss(self, policy, batch):
    found = plain(self, policy, batch)
    {lines}
    return found
pretrain.Pretrain.loss = loss
worker.rehearse_part(json.loads(sys.argv[2]))
"""
FIRST_LINE = 9


@needs_compiler
def test_planted_waits_are_found_and_named(tmp_path: Path) -> None:
    program = tmp_path / "bench" / "planted.py"
    program.parent.mkdir()
    program.write_text(PROGRAM.format(lines="\n    ".join(WAITS)), encoding="utf-8")
    reports = tmp_path / "reports.jsonl"
    runs = [Run.resolve(**SMALL).resolved.arguments.to_dict()]
    place = {"folder": str(tmp_path), "environment": dict(os.environ), "reports": str(reports)}
    part = {"device": "H200", "world_size": 1, "runs": runs, **place}
    library = str(stub.build_stub(tmp_path)) if torch.version.cuda is None else ""
    command = [sys.executable, str(program), library, json.dumps(part)]
    subprocess.run(command, check=True, capture_output=True)
    found = Rehearsal.from_dict(json.loads(reports.read_text(encoding="utf-8"))).forbidden_waits
    places = {wait.place.split(" <")[0]: wait.kind for wait in found}
    assert places == {
        f"bench/planted.py:{line} loss": kind
        for line, kind in enumerate(WAITS.values(), start=FIRST_LINE)
    }


def test_devices_go_by_the_names_people_write() -> None:
    names = {"h200": "H200", "H100-PCIe": "H100 PCIe", "rtx4090": "RTX 4090", "CPU": "cpu"}
    assert {name: known_device(name) for name in names} == names
    assert {known_device(name) for name in GPUS} == set(GPUS)
    with pytest.raises(ConfigError, match="h300: no data sheet of it here; there are cpu, a10"):
        known_device("h300")


def test_a_place_is_a_device_and_a_number_of_ranks() -> None:
    device, ranks = read_place("h200:8")
    assert (device.name, device.kind, device.precision, ranks) == ("H200", "gpu", "bf16", 8)
    assert read_place("t4")[0].precision == "fp16"
    assert read_place("cpu:2")[1] == 2
    for text in ("h200:0", "h200:x", "h200:-1"):
        with pytest.raises(ConfigError, match="is no number of ranks"):
            read_place(text)


@needs_compiler
def test_a_dry_run_says_what_another_machine_would_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--dry_run", "--on", "h200:8", "--set", "num_hidden_layers=1", "--seq_len", "128"]
    assert main([*flags, "--batch_size", "32"]) == 0
    text = capsys.readouterr().out
    assert "device     H200 x 8, bf16, ZeRO stage 2" in text
    assert re.search(r"memory     0\.0\d GiB a rank at the peak: ", text)
    assert "time       at least" in text
    assert not list(tmp_path.iterdir())


def test_on_is_for_dry_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--on", "h200:8"]) == 2
    said = "--on h200:8 says where a --dry_run rehearses: add --dry_run"
    assert said in capsys.readouterr().err
    assert main(["--on", "abacus", "--dry_run"]) == 2
    assert "abacus: no data sheet" in capsys.readouterr().err


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiler.shutil, "which", lambda _: None)
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path))
    device, ranks = read_place("h200:8")
    run = Run.of(Run.resolve(**SMALL).resolved.arguments, (device, ranks))
    if torch.version.cuda is None:
        assert "needs a C++ compiler" in str(why_not(run.resolved))


@needs_compiler
def test_memory_that_is_not_there_is_refused_with_the_largest_that_fits() -> None:
    arguments = Run.resolve(**SMALL, set={"micro_batch_size": 8}).resolved.arguments
    device, _ = read_place("h200")
    found = rehearse(Run.of(arguments, (device, 1)))

    def check(memory_bytes: int | None) -> None:
        there = dataclasses.replace(device, memory_bytes=memory_bytes)
        check_memory(Run.of(arguments, (there, 1)), found)

    check(found.peak_bytes)
    check(None)
    with pytest.raises(ConfigError, match="more than the") as caught:
        check(found.peak_bytes - 1)
    assert str(caught.value).endswith("a micro-batch of 4 rows fits: --set micro_batch_size=4")
    with pytest.raises(ConfigError, match="no micro-batch fits"):
        check(1 << 20)


@pytest.mark.parametrize(
    "options",
    [
        {"micro_batch_size": 64},
        {"set": {"ds_config.train_micro_batch_size_per_gpu": 64}},
        {"set": {"ds_config.gradient_accumulation_steps": 1}},
    ],
    ids=["flag", "micro-batch of the JSON", "accumulation of the JSON"],
)
def test_the_advice_can_be_given_beside_the_rest(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def held(arguments: TrainArguments) -> Rehearsal:
        rows = Run.of(arguments, (device, 1)).resolved.micro_batch_size
        return dataclasses.replace(NOTHING, peak={"activations": rows * GIB})

    device, _ = read_place("h200")
    small = dataclasses.replace(device, memory_bytes=20 * GIB)
    monkeypatch.setattr(fits, "rehearse_all", lambda points: [held(p.arguments) for p in points])
    arguments = collect_arguments({"model": "minimind3", "batch_size": 64, **options})
    with pytest.raises(ConfigError, match="a micro-batch of 16 rows fits: ") as caught:
        check_memory(Run.of(arguments, (small, 1)), held(arguments))
    given = [f"--set {key}={value}" for key, value in options.get("set", {}).items()]
    advice = str(caught.value).split("fits: ")[1]
    flags = "--model minimind3 --batch_size 64 " + " ".join([*given, advice])
    again = Run.of(parse_arguments(flags.split()), (small, 1)).resolved
    assert (again.micro_batch_size, again.train_batch_size) == (16, 64)


@needs_compiler
def test_memory_falls_with_what_saves_it() -> None:
    def point(ranks: int = 1, **changes: Any) -> Point:
        options = {"model": "minimind3", "num_hidden_layers": 2, "seq_len": 512, "batch_size": 64}
        options |= {"set": {"micro_batch_size": 8, **changes}}
        return Point(arguments=collect_arguments(options), device="H200", ranks=ranks)

    whole, again, fewer, divided = rehearse_all(
        [point(), point(activation_checkpointing=True), point(micro_batch_size=4), point(ranks=8)]
    )
    assert again.peak_bytes < whole.peak_bytes
    assert fewer.peak["activations"] == pytest.approx(whole.peak["activations"] / 2, rel=0.01)
    assert divided.peak["optimizer"] == pytest.approx(whole.peak["optimizer"] / 8, rel=0.01)
    assert divided.peak["weights"] == whole.peak["weights"]


def test_the_bound_is_what_takes_longest() -> None:
    gpu = GPUS["H200"]
    product = Work(flops=int(gpu.flops), moved=1000, is_wide=False)
    copy = Work(flops=0, moved=int(gpu.bytes_per_s / 2), is_wide=False)
    collectives = {"all_reduce": (1, int(gpu.link_bytes_per_s))}
    alone = estimate([product, copy], 1, 1, collectives, gpu, 1, overlaps=True)
    assert (alone.products, alone.memory, alone.links) == pytest.approx((1.0, 0.5, 0.0))
    assert alone.bound == "products"
    eight = estimate([copy], 1, 1, collectives, gpu, 8, overlaps=False)
    assert eight.links == pytest.approx(2 * 7 / 8, rel=1e-3)
    assert eight.bound == "links"
    hidden = estimate([product, copy], 1, 1, collectives, gpu, 8, overlaps=True)
    assert hidden.links == pytest.approx(2 * 7 / 8 - 1.0, rel=1e-3)
    idle = estimate([copy], 100_000, 0, {}, gpu, 1, overlaps=False)
    assert (idle.bound, idle.step) == ("host", idle.host)
    assert sent_share("all_gather", 4) == 0.75


def test_waits_are_said_one_by_one() -> None:
    found = dataclasses.replace(
        NOTHING,
        waits=(
            Wait("item", "minimind/x.py:3 f", 2),
            Wait("event.synchronize", "pending.py:9 read < minimind/engine/loop.py:8 g", 1),
        ),
    )
    assert found.tokens_per_s == pytest.approx(1000 / 0.75)
    assert [wait.kind for wait in found.forbidden_waits] == ["item"]
    assert "waits      2 x item: minimind/x.py:3 f" in found.describe()


@needs_compiler
def test_a_rehearsal_sees_the_folder_and_the_environment_of_its_moment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The process that rehearses is kept, and knows nothing of the runs before."""
    arguments = collect_arguments(SMALL)
    monkeypatch.setenv("MINIMIND_PRECISION", "fp32")
    wide = rehearse_all([Point(arguments=arguments, device="H200", ranks=1)])[0]
    (tmp_path / "own.json").write_text('{"bf16": {"enabled": true}}', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINIMIND_PRECISION")
    own = collect_arguments(SMALL | {"ds_config": "own.json"})
    narrow = rehearse_all([Point(arguments=own, device="H200", ranks=1)])[0]
    assert wide.peak["weights"] == pytest.approx(2 * narrow.peak["weights"], rel=0.01)


@needs_compiler
@pytest.mark.parametrize("device", ["cpu", "H200"])
def test_deepspeeds_own_optimizers_of_the_cpu_are_rehearsed(device: str, tmp_path: Path) -> None:
    """Their C++ knows nothing of tensors without storage."""
    json_file = tmp_path / "offload.json"
    zero = {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": True}}
    json_file.write_text(json.dumps({"zero_optimization": zero}), encoding="utf-8")
    arguments = collect_arguments(SMALL | {"ds_config": str(json_file)})
    (found,) = rehearse_all([Point(arguments=arguments, device=device, ranks=1)])
    assert found.peak_bytes > 0
