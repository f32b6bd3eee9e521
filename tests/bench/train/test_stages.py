"""bench.train after pretraining: its rows train alike, and what is made of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from stage_options import SPREAD

from bench.train import __main__ as train_step
from bench.train.goals import measure_goals
from bench.train.original import OriginalModel
from bench.train.rollouts import OriginalAnswers, compare_rollouts, log_probs
from bench.train.rows import EngineRow, TrainRow, build_row
from bench.train.specs import build_specs, usual_rows
from minimind.engine.stage import Policy
from minimind.runtime.devices import find_device
from minimind.stages import STAGES as ALL_STAGES
from minimind.stages.policy_loss import rollout_log_probs
from minimind.stages.rollout_batch import build_rollout_batch
from minimind.stages.rollout_stage import RolloutStage
from minimind.stages.sft import SFT
from minimind.stages.trajectory import Trajectory
from minimind.types import Batch, LossSum

SIZES = ["--accumulation", "2", "--micro_batch", "2", "--seq_len", "128", "--precision", "fp32"]
SMALL = ["--set", "num_hidden_layers=1", "--set", "hidden_size=32"]
STAGES = [stage for stage in ALL_STAGES if stage != "pretrain"]


@pytest.fixture(autouse=True)
def _one_rank_one_thread(no_launcher: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def build_rows(stage: str, names: Sequence[str], folder: Path) -> dict[str, TrainRow]:
    argv = ["--json", "-", "--stage", stage, "--steps", "2", "--warmup", "1", *SIZES, *SMALL]
    if issubclass(ALL_STAGES[stage], RolloutStage):
        argv += ["--set", f"rewards={json.dumps(SPREAD['rewards'])}"]
    options = train_step.build_parser().parse_args(argv)
    specs = build_specs(options, "tiny", list(names), find_device(), folder)
    return {spec.name: build_row(spec) for spec in specs}


@pytest.mark.parametrize("stage", STAGES)
def test_all_forms_of_a_stage_take_the_same_steps(stage: str, tmp_path: Path) -> None:
    names = [n for n in usual_rows(stage) if n in ("plain_loop", "engine", "two_models")]
    rows = build_rows(stage, names, tmp_path)
    before = [weight.clone() for weight in rows["engine"].module.parameters()]
    losses = {name: [float(row.step()) for _ in range(3)] for name, row in rows.items()}
    for name in names:
        # Advantages make sums of both signs.
        assert losses[name] == pytest.approx(losses["engine"], rel=1e-5, abs=1e-6)
    after = rows["engine"].module.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


class Weighted(SFT):
    """A stage that bench has not heard of, whose steps are made of what it prepares."""

    name: ClassVar[str] = "weighted"

    def prepare(self, engine: Any, micro_batches: list[Batch], step: int) -> Iterator[list[Batch]]:
        counts = torch.tensor([float(sum(batch.count for batch in micro_batches))])
        self._weight = engine.sum_over_ranks(counts).item() / 100
        yield micro_batches

    def loss(self, policy: Policy, batch: Batch) -> LossSum:
        loss = super().loss(policy, batch)
        return LossSum(total=self._weight * loss.total)


def test_a_new_stage_has_rows_without_a_word_in_bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ALL_STAGES, "weighted", Weighted)
    assert usual_rows("weighted") == ("plain_loop", "engine")
    rows = build_rows("weighted", usual_rows("weighted"), tmp_path / "new")
    plain, engine = ([float(row.step()) for _ in range(3)] for row in rows.values())
    assert plain == pytest.approx(engine, rel=1e-5)
    sft = build_rows("sft", ["engine"], tmp_path / "sft")["engine"]
    assert engine[0] != pytest.approx(float(sft.step()), rel=1e-2)


def test_rows_of_one_format_see_the_same_data(tmp_path: Path) -> None:
    rows = build_rows("distill", ["plain_loop", "frozen"], tmp_path)
    one, other = (rows[name].steps.step(1) for name in rows)
    for left, right in zip(one.batches, other.batches, strict=True):
        assert left.ids_BT.equal(right.ids_BT)
    assert one.num_places == 4 * 128
    assert one.num_tokens == sum(int(batch.is_token_BT.sum()) for batch in one.batches)
    assert 0 < one.num_targets < one.num_tokens < one.attended


def test_the_frozen_model_gives_the_first_loss(tmp_path: Path) -> None:
    """Its weights are those that every row starts from."""
    frozen = build_rows("distill", ["frozen"], tmp_path / "frozen")["frozen"]
    sft = build_rows("sft", ["plain_loop"], tmp_path / "sft")["plain_loop"]
    assert float(frozen.step()) == pytest.approx(float(sft.step()), rel=1e-5)
    assert not any(parameter.requires_grad for parameter in frozen.module.parameters())


def test_a_step_of_answers_is_counted_by_what_was_learned_from(tmp_path: Path) -> None:
    """Prompts, which a loader reads, say nothing of it; PPO learns from every answer twice."""
    rows = build_rows("ppo", ["engine"], tmp_path)
    engine = rows["engine"]
    engine.step()
    assert engine.answers is not None
    data = engine.answers.take()
    measured = engine.run.loop.stage.measured()
    read: Any = engine.steps.step(0).batches
    prompts = [prompt for batch in read for prompt in batch.prompts]
    made = round(measured["answer_tokens"] * len(prompts))
    assert data.num_targets == 2 * made
    assert data.num_tokens == 2 * (made + sum(len(prompt.ids) - 1 for prompt in prompts))


def test_the_original_answers_as_our_model_would(tmp_path: Path) -> None:
    """Its cache changes nothing, and its log-probabilities are ours."""
    rows = build_rows("grpo", ["original", "engine"], tmp_path)
    original, engine = rows["original"], rows["engine"]
    assert isinstance(original, OriginalAnswers)
    read: Any = original.steps.step(0).batches
    prompt = read[0].prompts[0]
    ids_GT = original.generate(prompt.ids)
    assert ids_GT.shape == (6, len(prompt.ids) + 64)
    model = original.module
    assert isinstance(model, OriginalModel)
    pasts: list[list[torch.Tensor]] = [[] for _ in model.model.layers]
    model(ids_GT[:, :20], pasts)
    assert model(ids_GT[:, 20:21], pasts).allclose(model(ids_GT[:, :21])[:, -1:], atol=1e-5)
    answers = [
        Trajectory(
            prompt=prompt,
            messages=[],
            index=index,
            ids=ids[len(prompt.ids) :],
            log_probs=[0.0] * 64,
        )
        for index, ids in enumerate(ids_GT.tolist())
    ]
    batch = build_rollout_batch(answers, counts_tokens=False)
    ours = rollout_log_probs(engine.module, batch, 1.0)
    theirs = log_probs(model, ids_GT)[:, len(prompt.ids) - 1 :]
    assert ours.allclose(theirs.flatten(), atol=1e-4)


def test_the_original_learns_from_groups(tmp_path: Path) -> None:
    original = build_rows("grpo", ["original"], tmp_path)["original"]
    assert isinstance(original, OriginalAnswers)
    before = [weight.detach().clone() for weight in original.module.parameters()]
    assert original.step().isfinite()
    moved = zip(before, original.module.parameters(), strict=True)
    assert not all(old.equal(new) for old, new in moved)
    data = original.take()
    assert 0 < data.num_targets <= 4 * 6 * 64
    assert data.num_targets < data.num_tokens < data.num_places


def test_a_rollout_is_timed_beside_the_engine_it_runs_in(tmp_path: Path) -> None:
    engine = build_rows("grpo", ["engine"], tmp_path)["engine"]
    assert isinstance(engine, EngineRow)
    engine.step()
    found = compare_rollouts(engine.run, engine.steps)
    assert found["rollout_over_engine"]["median"] > 0.3
    assert engine.step() != 0.0, "it trains on"


def row(name: str, seconds: Sequence[float], **more: Any) -> dict[str, Any]:
    return {"name": name, "model": "tiny", "step_seconds": seconds, **more}


def test_goals_of_distillation() -> None:
    rows = [
        row("engine", [4.2, 4.4]), row("plain_loop", [4.0, 4.0]),
        row("sft", [3.0, 3.0]), row("frozen", [1.0, 1.0]),
    ]  # fmt: skip
    tax, bounded = measure_goals("distill", rows, on_gpu=False)
    assert (tax["value"], tax["is_met"]) == (pytest.approx(1.075), False)
    assert (bounded["value"], bounded["is_met"]) == (pytest.approx(1.075), True)
    assert [goal["name"] for goal in measure_goals("distill", rows[:3], on_gpu=False)] == [
        tax["name"]
    ]


def test_goals_of_adapters() -> None:
    ratios = {"ratio_to_sft": 1.17, "ratio_to_sft_error": 0.01}
    memory = {"live_bytes_between_steps": 400, "trained_parameters": 25}
    rows = [
        row("engine", [1.0], flops_per_token_causal=70, **ratios, **memory),
        row("sft", [1.0], flops_per_token_causal=100, live_bytes_between_steps=600,
            trained_parameters=100),
    ]  # fmt: skip
    speed, states = measure_goals("lora", rows, on_gpu=False)
    assert (speed["value"], speed["standard_error"], speed["is_met"]) == (1.17, 0.01, True)
    assert speed["bound"] == pytest.approx(100 / 70)
    assert (states["value"], states["is_met"]) == (pytest.approx(500 / 1000), True)
    assert not measure_goals("lora", rows, on_gpu=True)[0]["is_met"], "1.2 there"


def test_goals_of_answers() -> None:
    rows = [
        row("engine", [1.0, 1.1], rollout_over_engine={"median": 0.9, "standard_error": 0.01}),
        row("original", [6.0, 6.6]),
    ]  # fmt: skip
    beside_original, rollouts = measure_goals("grpo", rows, on_gpu=False)
    assert (beside_original["value"], beside_original["is_met"]) == (pytest.approx(6), True)
    assert (rollouts["value"], rollouts["is_met"]) == (0.9, True)
    assert measure_goals("ppo", rows, on_gpu=False) == [{**rollouts, "stage": "ppo"}]


def test_the_caching_pass_counts_as_one_forward() -> None:
    ratios = {"ratio_to_two_models": 1.3, "ratio_to_two_models_error": 0.02}
    rows = [
        row("engine", [3.0, 3.0], **ratios), row("two_models", [4.0, 4.0]),
        row("frozen", [1.0, 1.0]),
    ]  # fmt: skip
    step, epoch = measure_goals("dpo", rows, on_gpu=False)
    assert (step["value"], step["is_met"], step["bound"]) == (1.3, True, pytest.approx(4 / 3))
    assert (epoch["value"], epoch["is_met"]) == (1.0, None)


@pytest.mark.slow
def test_a_run_reports_its_goals(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    argv = ["--json", str(path), "--stage", "dpo", "--model", "tiny", *SIZES, *SMALL]
    assert train_step.main([*argv, "--steps", "2", "--warmup", "1"]) == 0
    found = json.loads(path.read_text())
    assert [row["name"] for row in found["rows"]] == list(usual_rows("dpo"))
    assert {row["stage"] for row in found["rows"]} == {"dpo"}
    assert [goal["stage"] for goal in found["goals"]] == ["dpo"] * 3
    frozen = found["rows"][-1]
    assert (frozen["trained_parameters"], frozen["ds_config"]) == (0, None)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--stage", "sft", "--rows", "original"], "--rows original: there are plain_loop"),
        (["--stage", "lora", "--document_tokens", "50"], "--document_tokens is for"),
        (["--stage", "lora", "--other_data", "a.jsonl"], "no row reads another format"),
    ],
)
def test_what_does_not_go_with_a_stage_is_refused(
    argv: list[str], message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert train_step.main(["--json", str(tmp_path / "results.json"), *argv]) == 2
    assert message in caplog.text + capsys.readouterr().err
