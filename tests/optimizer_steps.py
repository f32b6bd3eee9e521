"""Takes steps of a small model with the engine, and the same steps in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from small_models import pack, random_documents, random_model, small_config
from torch import Tensor, nn

from minimind.config.deepspeed_json import Hardware, load_ds_config, precision, resolve
from minimind.config.recipe import Recipe
from minimind.config.sizes import Sizes
from minimind.engine.deepspeed_engine import DeepSpeedEngine
from minimind.engine.muon import Muon
from minimind.engine.parameter_groups import trained_matrices
from minimind.engine.stage import Policy
from minimind.engine.state_layout import whole_layout
from minimind.model.transformer import Transformer
from minimind.runtime.devices import find_device
from minimind.runtime.ranks import Ranks
from minimind.stages.pretrain import Pretrain
from minimind.types import Batch, LossSum

ALONE = Ranks(0, 0, 1)
RATE, DECAY = 1e-2, 0.1
STEPS, ACCUMULATION = 3, 2
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FP16_SCALE = 2.0**8
FACTORS: dict[str, dict[str, float]] = {
    "lr_factors": {"proj": 0.5},
    "weight_decay_factors": {"norm": 0.0},
}
ADAMW: dict[str, Any] = {"type": "AdamW", "params": {"torch_adam": True, "fused": True}}


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


def build_engine(
    name: str, kind: str, optimizer: dict[str, Any], clipping: float, **options: Any
) -> DeepSpeedEngine:
    """Builds an engine; `options` are the recipe's."""
    ds_config = resolved(name, kind, optimizer, clipping)
    assert precision(ds_config) == kind
    recipe = Recipe(weight_decay=DECAY, optimizer=optimizer["type"], **options)
    return DeepSpeedEngine(random_model(small_config()), ds_config, recipe, find_device(), ALONE)


def take_backwards(engine: DeepSpeedEngine, step: int) -> None:
    """Takes all of a step except its update."""
    batches = micro_batches(step)
    engine.start_step(target_count(batches))
    for batch in batches:
        engine.backward(Pretrain(engine.recipe).loss(engine, batch), batch.count)


def take_step(engine: DeepSpeedEngine, step: int) -> float:
    """Takes a step and gives the gradient's norm."""
    take_backwards(engine, step)
    engine.step(RATE)
    return float(engine.grad_norm)


def engine_steps(
    name: str, kind: str, optimizer: dict[str, Any], clipping: float, steps: int, **options: Any
) -> tuple[dict[str, Tensor], list[float]]:
    """Gives the masters after `steps` steps, and each step's gradient norm; `options` are the
    recipe's."""
    engine = build_engine(name, kind, optimizer, clipping, **options)
    norms = [take_step(engine, step) for step in range(steps)]
    return engine.full_weights(), norms


def plain_steps(
    kind: str,
    optimizer: dict[str, Any],
    clipping: float,
    steps: int,
    clip_value: float = 0.0,
    **factors: Any,
) -> tuple[dict[str, Tensor], list[float]]:
    """Takes the same steps in plain PyTorch: fp32 masters, gradients summed in fp32, rounded once
    to the weights."""
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
    updates = build_plain(optimizer["type"], groups, settings, masters, kind)
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
        if clip_value:
            nn.utils.clip_grad_value_(list(masters.values()), clip_value)
        norm = torch.stack([m.grad.double().norm() for m in masters.values()]).norm()  # type: ignore[union-attr]
        norms.append(float(norm))
        if clipping:
            nn.utils.clip_grads_with_norm_(list(masters.values()), clipping, norm)
        updates.step()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(masters[name])
    return masters, norms


def build_plain(
    type: str,
    groups: list[dict[str, Any]],
    settings: dict[str, Any],
    masters: dict[str, Tensor],
    kind: str,
) -> torch.optim.Optimizer:
    """Builds PyTorch's optimizer, or Muon on whole tensors."""
    if type != "Muon":
        return getattr(torch.optim, type)(groups, **settings)
    model = random_model(small_config())
    found = trained_matrices(model)
    rows = {masters[name]: found[p] for name, p in model.named_parameters() if p in found}
    for group in groups:
        group["is_matrix"] = group["params"][0] in rows
    dtype = DTYPES["fp32" if kind == "fp32" else "bf16"]
    muon = Muon(groups, rows, dtype=dtype, **settings)
    muon.place(whole_layout(masters.values()))
    return muon


def plain_loss(model: Transformer, batch: Batch) -> LossSum:
    policy: Policy = model
    return Pretrain(Recipe()).loss(policy, batch)


def assert_equal_masters(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, weight in found.items():
        assert torch.equal(weight, expected[name].detach()), name


def assert_within_rounding(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Masters after one clipped step of SGD, which the size of a gradient reaches whole, differ by
    rounding alone. A file may take the norm in fp32: a sum of 20,000 squares, each rounded once and
    added pairwise, and the coefficient's two divisions are within 16 units in the last place."""
    unit = 2.0**-24
    start = dict(random_model(small_config()).named_parameters())
    for name, weight in found.items():
        moved = (expected[name] - start[name]).abs()
        # The update's share of the norm's error, and the rounding of either sum.
        bound = 16 * unit * moved + 2 * unit * expected[name].abs()
        assert ((weight - expected[name]).abs() <= bound).all(), name
