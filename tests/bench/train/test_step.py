"""bench.train: the baseline computes what our model computes, and a run reports it all."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench import harness
from bench.train import __main__ as train_step
from bench.train.documents import Documents, PaddedSteps, one_row
from bench.train.original import OriginalModel, original_loss
from bench.train.padded import PADDED_ROWS
from bench.train.rows import build_row
from bench.train.specs import RowSpec, build_specs
from bench.workers import WorkerError
from minimind.config.model import ModelConfig
from minimind.config.recipe import Recipe
from minimind.errors import ConfigError
from minimind.model.state_dict import split_fused
from minimind.model.transformer import Transformer
from minimind.run.build import build_trained
from minimind.runtime.devices import find_device
from minimind.stages.pretrain import Pretrain
from minimind.types import IGNORE_INDEX

LENGTH = 24
SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SERIES = {
    "2": {
        "model_type": "llama",
        "use_qk_norm": False,
        "rms_norm_eps": 1e-5,
        "norm_cast_before_weight": True,
    },
    "3": {},
    "untied": {"tie_word_embeddings": False},
}


def make_documents(count: int = 37) -> Documents:
    random = np.random.default_rng(5)
    ids = [random.integers(3, 97, size=n) for n in random.integers(2, LENGTH + 1, size=count)]
    return Documents(ids=ids, max_tokens=LENGTH, pad_id=0, seed=1)


@pytest.mark.parametrize("series", SERIES)
def test_original_has_our_loss_and_gradient(series: str) -> None:
    config = ModelConfig(**SIZES, **SERIES[series])
    documents = make_documents(9)
    ours = Transformer(config)
    ours.init_weights(3)
    batch = one_row(documents.ids, pad_id=0)
    loss = Pretrain(Recipe()).loss(ours, batch)
    (loss.total / batch.count).backward()

    original = OriginalModel(config, LENGTH)
    original.load_split(split_fused(config, dict(ours.named_parameters())))
    padded = PaddedSteps(documents, rows=9, accumulation=1, steps=1)
    ids_BT, labels_BT = padded.pad(documents.ids)
    theirs = original_loss(original(ids_BT), labels_BT)
    theirs.backward()

    assert batch.count == (labels_BT != IGNORE_INDEX).sum()
    torch.testing.assert_close(loss.total / batch.count, theirs, rtol=1e-6, atol=1e-6)
    gradients = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    split = split_fused(config, gradients)
    named = dict(original.named_parameters())
    assert set(split) == set(named)
    for name, gradient in split.items():
        torch.testing.assert_close(gradient, named[name].grad, rtol=1e-4, atol=1e-6, msg=name)


def test_original_refuses_what_it_has_not() -> None:
    with pytest.raises(ConfigError, match="rope_scaling"):
        OriginalModel(ModelConfig(**SIZES, rope_scaling="yarn"), LENGTH)  # type: ignore[arg-type]


def test_padded_and_packed_steps_hold_whole_documents() -> None:
    documents = make_documents()
    packed = documents.pack(seq_len=32, micro_batch=2, accumulation=2, steps=5)
    padded = PaddedSteps(documents, rows=4, accumulation=2, steps=3)
    known = {tuple(ids) for ids in documents.ids}
    for index in range(5):
        step = packed.step(index)
        pieces = []
        for batch in step.batches:
            edges, flat = batch.cu_seqlens.tolist(), batch.ids_BT.flatten().tolist()
            pieces += [flat[a:b] for a, b in itertools.pairwise(edges)]
        real = [tuple(piece) for piece in pieces if set(piece) != {0}]
        assert set(real) <= known
        assert step.num_targets == step.num_tokens - len(real)
        assert step.num_tokens == sum(len(piece) for piece in real)
        assert step.num_places == 4 * 32
        assert step.attended == sum(n * (n + 1) // 2 for n in map(len, real))
    assert torch.equal(packed.step(3).batches[1].ids_BT, packed.step(3).batches[1].ids_BT)
    for index in range(3):
        step = padded.step(index)
        labels_BT = torch.cat([labels for _, labels in step.batches])
        assert step.num_targets == (labels_BT != IGNORE_INDEX).sum() == step.num_tokens - 8
        assert step.num_places == 8 * LENGTH


def test_padded_sample_has_the_padding_of_all() -> None:
    documents = make_documents(5000)
    padded = PaddedSteps(documents, rows=8, accumulation=1, steps=4)
    mean = np.mean([len(ids) for ids in documents.ids])
    sampled = np.mean([padded.step(index).num_tokens for index in range(4)]) / 8
    assert sampled == pytest.approx(mean, rel=0.01)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads on two busy cores wait for each other most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


def arguments(folder: Path, *more: str) -> list[str]:
    path = folder / "results.json"
    argv = ["--json", str(path), "--model", "tiny", "--steps", "3", "--warmup", "1"]
    argv += ["--accumulation", "2", "--micro_batch", "2", "--seq_len", "64"]
    argv += ["--document_tokens", "32", "--original_batch", "4"]
    return [*argv, "--set", "num_hidden_layers=1", "--set", "hidden_size=32", *more]


def run_benchmark(folder: Path, *more: str) -> dict[str, Any]:
    assert train_step.main(arguments(folder, *more)) == 0
    return json.loads((folder / "results.json").read_text())


def compare_first_losses(spec: RowSpec) -> tuple[float, float]:
    """Gives the loss of a padded row and of our model on the row's first documents: padded there,
    packed here, from the weights that every row starts from; ours in fp32."""
    run, device = spec.run, spec.run.device.torch_device
    assert spec.documents is not None, "a row of pretraining"
    row = PADDED_ROWS[spec.name](spec)
    ours = build_trained(run)
    first = row.steps.ids(0)[: spec.original_batch]
    batch = one_row(first, spec.documents.pad_id).to(device)
    ids_BT, labels_BT = (x.to(device) for x in row.steps.step(0).batches[0])
    with torch.no_grad():
        loss = ours.stage.loss(ours.models.policy, batch)
        return float(row.loss(ids_BT, labels_BT)), float(loss.total / batch.count)


@pytest.mark.parametrize("row", list(PADDED_ROWS))
@pytest.mark.parametrize("model", ["tiny", "minimind2-small"])
def test_padded_rows_have_our_loss_and_train(row: str, model: str, tmp_path: Path) -> None:
    if row == "transformers":
        pytest.importorskip("transformers")
    argv = arguments(tmp_path, "--model", model, "--set", "num_attention_heads=4")
    options = train_step.build_parser().parse_args(argv)
    (spec,) = build_specs(options, model, [row], find_device(), tmp_path)
    with torch.compiler.set_stance("force_eager"):
        theirs, ours = compare_first_losses(spec)
        assert theirs == pytest.approx(ours, abs=1e-4)
        trained = build_row(spec)
        losses = [float(trained.step()) for _ in range(4)]
    assert losses[-1] < losses[0]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_benchmark(tmp_path_factory.mktemp("bench"), "--precision", "fp32")


def test_results_hold_machine_and_arguments(results: dict[str, Any]) -> None:
    assert results["benchmark"] == "train_step"
    machine = results["machine"]
    assert machine["cores"] >= machine["threads"] >= 1
    assert machine["versions"]["torch"] == torch.__version__
    assert {"device", "commit", "date", "load_average", "driver"} <= set(machine)
    assert results["arguments"]["document_tokens"] == 32


def test_rows_have_what_tables_need(results: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in results["rows"]}
    assert list(rows) == ["original", "plain_loop", "engine"]
    for row in rows.values():
        assert row["machine"] == results["machine"]
        assert set(harness.ROW_FIELDS) <= row.keys()
        assert row["step_parts_s"]["forward"] > 0
        assert len(row["step_seconds"]) == len(row["losses"]) == 3
        assert row["step_s"]["p10"] <= row["step_s"]["median"] <= row["step_s"]["p90"]
        expected = row["useful_tokens_per_step"] / row["step_s"]["median"]
        assert row["useful_tokens_per_s"] == pytest.approx(expected)
        assert 0 <= row["padding_share"] < 1
        # Weights, gradients and Adam's two moments are alive at once.
        assert row["peak_bytes"] >= 16 * row["parameters"]
        assert row["peak_resident_bytes"] > row["peak_bytes"]
        assert row["dispatched_operators"] > row["parameter_tensors"] > 0
        assert sum(row["sync_operators"].values()) > 0
        assert row["mfu"] is None or row["mfu"] > 0
        assert row["precision"] == "fp32"
    assert rows["original"]["ratio_to_original"] == 1
    assert rows["plain_loop"]["ratio_to_plain_loop"] == 1
    assert rows["original"]["parameter_tensors"] > rows["engine"]["parameter_tensors"]
    assert rows["engine"]["ds_config"] == "zero2.json"
    assert rows["engine"]["padding_share"] < rows["original"]["padding_share"]


def test_engine_and_plain_loop_take_the_same_steps(results: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in results["rows"]}
    assert rows["engine"]["losses"] == pytest.approx(rows["plain_loop"]["losses"], rel=1e-5)
    assert rows["original"]["losses"][0] > rows["original"]["losses"][-1]


@pytest.mark.slow
def test_bf16_rows_follow_each_other(tmp_path: Path) -> None:
    found = run_benchmark(
        tmp_path, "--precision", "bf16", "--ds_config", "zero2.json", "zero3.json",
        "--rows", "plain_loop,engine",
    )  # fmt: skip
    rows = found["rows"]
    assert [row["ds_config"] for row in rows] == [None, "zero2.json", "zero3.json"]
    assert {row["precision"] for row in rows} == {"bf16"}
    assert rows[0]["ratio_to_original"] is None
    for row in rows[1:]:
        assert row["losses"] == pytest.approx(rows[0]["losses"], rel=1e-3)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--rows", "original,fast"], "--rows fast: there are original"),
        (["--rows", "engine,engine"], "different names"),
        (["--model", "huge"], "--model huge"),
        (["--ds_config", "zero9.json"], "zero9.json: no such file"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--tokenizer", "nowhere"], "nowhere"),
        (["--set", "micro_batch_size=3"], "--micro_batch decides"),
        (["--set", "max_steps=3"], "--steps decides"),
    ],
)
def test_bad_usage_is_named(
    argv: list[str], message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = tmp_path / "results.json"
    assert train_step.main(["--json", str(path), *argv]) == 2
    assert message in caplog.text + capsys.readouterr().err
    assert not path.exists()


def test_launchers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert train_step.main(["--json", str(tmp_path / "results.json")]) == 2


def test_what_breaks_after_the_timed_steps_does_not_lose_them(monkeypatch: pytest.MonkeyPatch):
    class Row:
        def __init__(self, name: str) -> None:
            self.name = name

        def call(self, method: str, *_: Any) -> dict[str, Any]:
            if self.name == "engine" and method == "measure":
                raise WorkerError("engine: no memory left")
            return {"peak_bytes": 7} if method == "measure" else {"wall_us": 1.0}

    monkeypatch.setattr(
        train_step,
        "started",
        lambda serve, specs: contextlib.nullcontext([Row("plain_loop"), Row("engine")]),
    )
    monkeypatch.setattr(train_step, "ask_all", lambda workers, method: [{}, {}])
    monkeypatch.setattr(train_step, "take_turns", lambda *_: [[], []])
    monkeypatch.setattr(train_step, "build_rows", lambda *given: given[-1])
    options = train_step.build_parser().parse_args(["--json", "x", "--profile"])
    broken: list[WorkerError] = []
    specs: Any = [SimpleNamespace(documents=None)] * 2
    plain, engine = train_step._measure_model(options, "tiny", specs, broken)
    assert (plain["peak_bytes"], plain["profile"]) == (7, {"wall_us": 1.0})
    assert (engine["peak_bytes"], engine["dispatched_operators"]) == (None, None)
    assert [str(error) for error in broken] == ["engine: no memory left"]
