"""What holds of every conversion, whatever its formats: damaged sources are refused by name, a
result that differs is not kept, and the target is complete or untouched."""

from __future__ import annotations

import dataclasses
import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_folders import small_folder
from small_models import random_model, small_config
from torch import Tensor

from minimind.cli.main import run_verb
from minimind.config.model import ModelConfig
from minimind.errors import CheckpointError, ConfigError
from minimind.interop import writers
from minimind.interop.checks import Difference
from minimind.interop.conversion import convert
from minimind.interop.options import ConvertOptions
from minimind.interop.source import LazyTensor, LazyTensors, Source
from minimind.model.hf_config import to_hf_config
from minimind.model.state_dict import split_fused
from minimind.samples.text import load_sample_tokenizer

Tensors = dict[str, Tensor]
NAME = "model.layers.1.mlp.down_proj.weight"


def write_hf(folder: Path, config: ModelConfig, tensors: Tensors) -> Path:
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(to_hf_config(config)))
    return folder / "model.safetensors"


def write_pth(folder: Path, config: ModelConfig, tensors: Tensors) -> Path:
    torch.save(tensors, folder / "full_sft_32.pth")
    return folder / "full_sft_32.pth"


SOURCES: dict[str, Callable[[Path, ModelConfig, Tensors], Path]] = {
    "hf": write_hf,
    "pth": write_pth,
}
"""For each format that is read, a function that writes a 3-series model's tensors, right or wrong,
into a folder, and gives the file of weights."""

TARGETS = ("hf", "minimind", "pth", "gguf")
"""The formats that are written, as values of --to."""


def _missing(tensors: Tensors) -> None:
    del tensors[NAME]


def _transposed(tensors: Tensors) -> None:
    tensors[NAME] = tensors[NAME].T.contiguous()


def _unexpected(tensors: Tensors) -> None:
    tensors["model.layers.1.mlp.extra.weight"] = torch.ones(3)


def _nan(tensors: Tensors) -> None:
    tensors[NAME][2, 3] = torch.nan


def _infinite(tensors: Tensors) -> None:
    tensors[NAME][0, 0] = -torch.inf


DAMAGES = {
    "missing": (_missing, NAME),
    "transposed": (_transposed, NAME),
    "unexpected": (_unexpected, "model.layers.1.mlp.extra.weight"),
    "NaN": (_nan, f"{NAME} holds 1 values that are NaN or infinite"),
    "infinite": (_infinite, f"{NAME} holds 1 values that are NaN or infinite"),
}
"""For each damage, the function that does it, and words of the error."""


@pytest.fixture
def tensors() -> Tensors:
    model = random_model(_config())
    return {
        name: tensor.detach().clone()
        for name, tensor in split_fused(model.config, dict(model.named_parameters())).items()
    }


def _config() -> ModelConfig:
    return small_config(vocab_size=load_sample_tokenizer().vocab_size)


def write_source(folder: Path, format: str, tensors: Tensors) -> Path:
    folder.mkdir()
    load_sample_tokenizer().save(folder)
    return SOURCES[format](folder, _config(), tensors)


def check_refused(
    folder: Path, words: str, capsys: pytest.CaptureFixture[str], to: str = "minimind"
) -> None:
    """The command says `words` and exits with 2, and there is nothing beside the source."""
    before = {path: path.read_bytes() for path in folder.parent.rglob("*") if path.is_file()}
    output = folder.parent / "out"
    argv = ["--input", str(folder), "--to", to, "--output", str(output)]
    assert run_verb("convert", argv) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert "written" not in captured.out
    after = {path: path.read_bytes() for path in folder.parent.rglob("*") if path.is_file()}
    assert before == after


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("format", SOURCES)
def test_a_damaged_model_is_refused_by_the_tensor_at_fault(
    tmp_path: Path,
    tensors: Tensors,
    format: str,
    damage: str,
    capsys: pytest.CaptureFixture[str],
):
    change, words = DAMAGES[damage]
    change(tensors)
    write_source(tmp_path / "in", format, tensors)
    check_refused(tmp_path / "in", words, capsys)


@pytest.mark.parametrize("num_bytes", [0, 5, 3000, -10])
@pytest.mark.parametrize("format", SOURCES)
def test_a_truncated_file_is_refused_by_its_name(
    tmp_path: Path,
    tensors: Tensors,
    format: str,
    num_bytes: int,
    capsys: pytest.CaptureFixture[str],
):
    file = write_source(tmp_path / "in", format, tensors)
    file.write_bytes(file.read_bytes()[:num_bytes])
    check_refused(tmp_path / "in", str(file), capsys)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.faults("a conversion to a place that is taken", "refused; what is there stays")
def test_what_is_there_already_stays(
    tmp_path: Path, target: str, capsys: pytest.CaptureFixture[str]
):
    small_folder(tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    check_refused(tmp_path / "in", "exists already", capsys, target)
    (tmp_path / "out" / "mine.txt").unlink()
    (tmp_path / "out").rmdir()
    (tmp_path / "out").write_text("precious too")
    check_refused(tmp_path / "in", "exists already", capsys, target)


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Makes the system refuse larger files inside the block, as a full disk refuses any."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.faults("the disk is full while a conversion is written", "named; nothing is left")
def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, target: str, capsys: pytest.CaptureFixture[str]
):
    small_folder(tmp_path / "in")
    with largest_file(100_000):
        check_refused(tmp_path / "in", "cannot be written", capsys, target)


def changed(source: Source) -> Source:
    """A source whose last weight is another one."""
    *_, name = source.tensors
    before = source.tensors.entries[name]
    after = LazyTensor(before.shape, before.dtype, lambda: before.read() + 0.125)
    entries = source.tensors.entries | {name: after}
    return dataclasses.replace(source, tensors=LazyTensors(entries, source.tensors.origin))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.faults("a conversion whose result differs", "refused; nothing is left")
def test_a_result_that_differs_is_not_kept(
    tmp_path: Path, target: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    writer = writers.WRITERS[target]

    def write_another(source: Source, path: Path, options: ConvertOptions) -> list[str]:
        return writer.write(changed(source), path, options)

    other = dataclasses.replace(writer, write=write_another)
    monkeypatch.setitem(writers.WRITERS, target, other)
    small_folder(tmp_path / "in")
    check_refused(tmp_path / "in", "the result differs from its source", capsys, target)


def test_what_is_no_number_differs():
    with pytest.raises(CheckpointError, match="nan"):
        Difference("logits", float("nan"), float("inf")).check()


@pytest.mark.parametrize("target", TARGETS)
def test_the_command_prints_the_largest_difference(
    tmp_path: Path, target: str, capsys: pytest.CaptureFixture[str]
):
    small_folder(tmp_path / "in")
    argv = ["--input", str(tmp_path / "in"), "--to", target, "--output", str(tmp_path / "out")]
    assert run_verb("convert", argv) == 0
    said = capsys.readouterr().out
    assert "largest difference of " in said
    assert said.endswith(f"{tmp_path / 'out'}: written\n")


def test_a_type_that_the_format_does_not_have_is_refused(tmp_path: Path):
    small_folder(tmp_path / "in")
    with pytest.raises(ConfigError, match="--to hf writes fp32, bf16, fp16"):
        convert(tmp_path / "in", "hf", tmp_path / "out", ConvertOptions(dtype="q8_0"))


@pytest.mark.parametrize("size", ["5", "0GB", "much", "1.5GB"])
def test_sizes_of_shards(tmp_path: Path, size: str, capsys: pytest.CaptureFixture[str]):
    small_folder(tmp_path / "in")
    argv = ["--input", str(tmp_path / "in"), "--to", "hf", "--output", str(tmp_path / "out")]
    status = run_verb("convert", [*argv, "--max_shard_size", size])
    assert (status == 0) == (size == "5")  # bytes: a file for each tensor
    if status:
        assert f"--max_shard_size {size}" in capsys.readouterr().err
