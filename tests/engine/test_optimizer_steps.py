"""The engine's steps beside those of plain PyTorch with fp32 masters: every shipped JSON, precision
and kind of optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_models import pack, random_documents, random_model, small_config
from torch import Tensor, nn

from minimind.config.deepspeed_json import SHIPPED, Hardware, load_ds_config, precision, resolve
from minimind.config.recipe import Recipe, Sizes
from minimind.engine.deepspeed_engine import DeepSpeedEngine, start_ranks
from minimind.engine.stage import Policy
from minimind.model.transformer import Transformer
from minimind.runtime.devices import find_device
from minimind.runtime.ranks import Ranks
from minimind.stages.pretrain import Pretrain
from minimind.types import Batch, LossSum

ALONE = Ranks(0, 0, 1)
RATE, DECAY = 1e-2, 0.1
STEPS, ACCUMULATION = 3, 2
FILES = sorted(path.stem for path in SHIPPED.glob("*.json"))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FP16_SCALE = 2.0**8
FACTORS: dict[str, dict[str, float]] = {
    "lr_factors": {"proj": 0.5},
    "weight_decay_factors": {"norm": 0.0},
}
ADAMW: dict[str, Any] = {"type": "AdamW", "params": {"torch_adam": True, "fused": True}}
OTHERS: dict[str, dict[str, Any]] = {
    "Adam": {"torch_adam": True, "adam_w_mode": False},
    "SGD": {"momentum": 0.9, "dampening": 0.5},
    "NAdam": {},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "ASGD": {"t0": 1},
    "Adagrad": {"lr_decay": 0.1},
}
"""What a step on zero gradients before the first would change: counters, momentum, averages."""


@pytest.fixture(autouse=True)
def _one_rank(no_launcher: None) -> None:
    start_ranks(ALONE, find_device())


@pytest.fixture
def _cpu_with_fp16(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """DeepSpeed asks before it trains in fp16, which a CPU can: slowly."""
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(type(get_accelerator()), "is_fp16_supported", lambda self: True)
    return


def micro_batches(step: int) -> list[Batch]:
    documents = random_documents([12, 5, 9, 3, 8, 7, 11, 2], seed=step)
    rows = (documents[:4], documents[4:])
    return [pack([row[:2], row[2:]], seq_len=20) for row in rows]


def target_count(batches: list[Batch]) -> Tensor:
    return torch.tensor(float(sum(batch.num_targets for batch in batches)))


def resolved(name: str, kind: str, optimizer: dict[str, Any], clipping: float) -> dict[str, Any]:
    sets: dict[str, Any] = {"optimizer": optimizer, "gradient_clipping": clipping}
    sets |= {f"{other}.enabled": other == kind for other in ("bf16", "fp16")}
    sets |= {"fp16.initial_scale_power": 8, "zero_allow_untested_optimizer": True}
    hardware = Hardware("gpu" if kind == "fp16" else "cpu", 1, kind)
    recipe = Recipe(learning_rate=RATE, weight_decay=DECAY, gradient_clipping=clipping)
    sizes = Sizes(20, 2 * ACCUMULATION, 2)
    return resolve(load_ds_config(name, sets), recipe, set(), sizes, hardware, 20_000)[0]


def engine_steps(
    name: str, kind: str, optimizer: dict[str, Any], clipping: float, steps: int, **factors: Any
) -> tuple[dict[str, Tensor], list[float]]:
    """The masters after `steps`, and each step's gradient norm."""
    ds_config = resolved(name, kind, optimizer, clipping)
    assert precision(ds_config) == kind
    recipe = Recipe(weight_decay=DECAY, **factors)
    model = random_model(small_config())
    engine = DeepSpeedEngine(model, ds_config, recipe, find_device(), ALONE)
    norms = []
    for step in range(steps):
        batches = micro_batches(step)
        engine.start_step(target_count(batches))
        for batch in batches:
            engine.backward(Pretrain(recipe).loss(engine, batch), batch.count)
        engine.step(RATE)
        norms.append(float(engine.grad_norm))
    return engine.full_weights(), norms


def plain_steps(
    kind: str, optimizer: dict[str, Any], clipping: float, steps: int, **factors: Any
) -> tuple[dict[str, Tensor], list[float]]:
    """The same in plain PyTorch: masters, gradients summed in fp32, one rounding to the weights."""
    model = random_model(small_config())
    masters = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.to(DTYPES[kind])
    settings = {k: v for k, v in optimizer["params"].items() if k not in ("torch_adam", "lr")}
    settings.pop("adam_w_mode", None)
    groups = [
        {
            "params": [master],
            "lr": RATE * (0.5 if "proj" in name and factors else 1.0),
            "weight_decay": DECAY * (0.0 if "norm" in name and factors else 1.0),
        }
        for name, master in masters.items()
    ]
    updates = getattr(torch.optim, optimizer["type"])(groups, **settings)
    scale = FP16_SCALE if kind == "fp16" else 1.0
    norms = []
    for step in range(steps):
        batches = micro_batches(step)
        sums = {name: torch.zeros_like(master) for name, master in masters.items()}
        for batch in batches:
            model.zero_grad()
            loss = plain_loss(model, batch)
            (loss.objective(batch.count) * (scale / target_count(batches))).backward()
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None
                sums[name] += parameter.grad.float()
        for name, master in masters.items():
            master.grad = sums[name] / scale
        norm = torch.stack([m.grad.double().norm() for m in masters.values()]).norm()  # type: ignore[union-attr]
        norms.append(float(norm))
        if clipping:
            nn.utils.clip_grads_with_norm_(list(masters.values()), clipping, norm)
        updates.step()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(masters[name])
    return masters, norms


def plain_loss(model: Transformer, batch: Batch) -> LossSum:
    policy: Policy = model
    return Pretrain(Recipe()).loss(policy, batch)


def assert_equal_masters(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, weight in found.items():
        assert torch.equal(weight, expected[name].detach()), name


@pytest.mark.parametrize("factors", [{}, FACTORS], ids=["one group", "groups"])
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_every_file_takes_the_steps_of_plain_pytorch_to_the_bit(
    kind: str, factors: dict[str, Any]
) -> None:
    expected, _ = plain_steps(kind, ADAMW, 0.0, STEPS, **factors)
    for name in FILES:
        if "fp16" not in name:
            found, _ = engine_steps(name, kind, ADAMW, 0.0, STEPS, **factors)
            assert_equal_masters(found, expected)


@pytest.mark.usefixtures("_cpu_with_fp16")
def test_fp16_does_so_under_its_loss_scale() -> None:
    expected, norms = plain_steps("fp16", ADAMW, 0.0, STEPS)
    for name in ("zero0", "zero1", "zero2_fp16", "zero3"):
        found, its_norms = engine_steps(name, "fp16", ADAMW, 0.0, STEPS)
        assert_equal_masters(found, expected)
        assert its_norms == pytest.approx(norms, rel=1e-6)


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
@pytest.mark.parametrize("type", OTHERS)
def test_other_optimizers_do_so_too(type: str, kind: str) -> None:
    optimizer = {"type": type, "params": {"lr": RATE, **OTHERS[type]}}
    expected, _ = plain_steps(kind, optimizer, 0.0, STEPS)
    for name in ("zero0",) if type == "Adagrad" else ("zero0", "zero1", "zero2", "zero3"):
        found, _ = engine_steps(name, kind, optimizer, 0.0, STEPS)
        assert_equal_masters(found, expected)


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_clipping_is_plain_pytorchs(kind: str) -> None:
    """For a step of SGD, which the size of a gradient reaches whole. A file may take the norm in
    fp32: a sum of 20,000 squares, each rounded once and added pairwise, and the coefficient's two
    divisions are within 16 units in the last place."""
    sgd = {"type": "SGD", "params": {"lr": RATE}}
    clipping, unit = 0.05, 2.0**-24
    start = dict(random_model(small_config()).named_parameters())
    expected, norms = plain_steps(kind, sgd, clipping, 1)
    assert norms[0] > 10 * clipping
    for name in ("zero0", "zero1", "zero2", "zero3"):
        found, its_norms = engine_steps(name, kind, sgd, clipping, 1)
        assert its_norms == pytest.approx(norms, rel=16 * unit)
        for weight_name, weight in found.items():
            moved = (expected[weight_name] - start[weight_name]).abs()
            # The update's share of the norm's error, and the rounding of either sum.
            bound = 16 * unit * moved + 2 * unit * expected[weight_name].abs()
            assert ((weight - expected[weight_name]).abs() <= bound).all(), (name, weight_name)


@pytest.mark.parametrize("checks", [False, True])
def test_stage_0_looks_at_each_gradient_for_overflow_only_where_asked(
    checks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepspeed.runtime.utils import CheckOverflow

    calls = []
    look = CheckOverflow.has_overflow
    monkeypatch.setattr(
        CheckOverflow,
        "has_overflow",
        lambda *given, **more: calls.append(1) or look(*given, **more),
    )
    ds_config = resolved("zero0", "bf16", ADAMW, 0.0)
    ds_config["bf16"] = {"enabled": True, "check_grad_overflow": checks}
    model = random_model(small_config())
    engine = DeepSpeedEngine(model, ds_config, Recipe(), find_device(), ALONE)
    batches = micro_batches(0)
    engine.start_step(target_count(batches))
    for batch in batches:
        engine.backward(Pretrain(Recipe()).loss(engine, batch), batch.count)
    engine.step(RATE)
    assert bool(calls) == checks
