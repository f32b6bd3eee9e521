"""One step, one gradient, however it is split over micro-batches, packings, ranks and ZeRO stages.

The gradient is read off one step of a training run, with SGD of a huge rate: it is what the
optimizer was given by the loop and the engine, after all accumulation and communication. The
reference is plain autograd, summed in fp64 and divided once. As a program this is one rank of
several: `one_gradient.py MODEL SEQ_LEN OUTPUT JSON...` audits all splits at their number.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minimind.data.collate import collate
from minimind.data.packing import build_row, plan_packing
from minimind.engine.process_group import start_ranks, stop_ranks
from minimind.run.arguments import collect_arguments
from minimind.run.build import build_trained
from minimind.run.resolve import ResolvedRun
from minimind.run.run import Run
from minimind.runtime.devices import Device, find_device, limit_threads
from minimind.runtime.ranks import Ranks, free_port, read_ranks
from minimind.types import Batch, LossSum, PackedRow

ROOT = Path(__file__).resolve().parents[1]
ROWS = 16
"""The rows of a step, however it is split."""
_RATE = 2.0**20
"""The learning rate: so large that the weight is negligible beside rate x gradient, and so is its
rounding."""
_BF16_ROUNDING = 2.0**-9
_FP32_BOUND = 1e-5
"""Bounds the error of fp32 sums in another order; a wrong divisor makes a far larger error."""
MODELS: dict[str, dict[str, object]] = {
    "dense": {"num_experts": 0},
    "experts": {"num_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.0},
    "experts+aux": {"num_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.1},
}
"""The fields that make each model, by its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Says how a step is taken: the documents are the same, packed and divided in this way."""

    model: str = "dense"
    precision: str = "fp32"
    ds_config: str = "zero2.json"
    ranks: int = 1
    micro_batch: int
    packing: int = 0
    """The seed of the order in which documents are packed into rows."""

    @property
    def accumulation(self) -> int:
        return ROWS // (self.micro_batch * self.ranks)


def list_splits(ds_configs: Sequence[str], ranks: int) -> list[Split]:
    """Lists the splits to compare on `ranks` ranks. The routers' auxiliary loss is a mean over a
    micro-batch, so with experts only splits with the same micro-batches can agree."""

    def splits(model: str, precision: str, *shapes: tuple[int, int]) -> list[Split]:
        return [
            Split(
                model=model, precision=precision, ds_config=name, ranks=ranks,
                micro_batch=micro_batch, packing=packing,
            )
            for name in ds_configs
            for micro_batch, packing in shapes
        ]  # fmt: skip

    share = ROWS // ranks
    middle = max(1, share // 4)
    return [
        *splits("dense", "fp32", (share, 0), (middle, 0), (1, 0), (middle, 1)),
        *splits("experts", "fp32", (middle, 0), (1, 1)),
        *(splits("experts+aux", "fp32", (2, 0)) if share % 2 == 0 else ()),
        *splits("dense", "bf16", (share, 0), (1, 0)),
    ]


def audit(
    splits: Sequence[Split], model: str, seq_len: int, device: Device, ranks: Ranks
) -> Iterator[dict[str, Any]]:
    """Yields the findings for each split, on rank 0 only. All ranks of the splits call it."""
    for split in splits:
        run = _resolve(split, model, seq_len, device, ranks)
        gradient = step_gradient(run, _micro_batches(split, run.resolved))
        if not ranks.is_main:
            continue
        reference = _reference(split, run.resolved)
        whole = sum(float(value.square().sum()) for value in reference.values()) ** 0.5
        apart = {
            # A tensor next to which nothing is left has only rounding in it.
            name: float((gradient[name].double() - value).norm() / max(value.norm(), 1e-6 * whole))
            for name, value in reference.items()
        }
        worst = max(apart, key=lambda name: apart[name])
        limit = bound(split, run.resolved)
        # Not a number is no gradient at all.
        is_one = apart[worst] <= limit
        yield {**asdict(split), "deviation": apart[worst], "tensor": worst, "bound": limit,
               "is_one_gradient": is_one}  # fmt: skip


def audit_on_ranks(
    ranks: int, model: str, seq_len: int, ds_configs: Sequence[str], output: Path
) -> list[dict[str, Any]]:
    """Audits all splits on a number of ranks, each in a process of its own."""
    shared = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    if find_device().kind == "cpu":
        shared["DS_ACCELERATOR"] = "cpu"
    shared["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    command = [sys.executable, __file__, model, str(seq_len), str(output), *ds_configs]
    processes = [
        subprocess.Popen(command, env=os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank})
        for rank in map(str, range(ranks))
    ]
    try:
        assert [process.wait(timeout=600) for process in processes] == [0] * ranks
    finally:
        for process in processes:
            process.kill()
    return json.loads(output.read_text())


def _resolve(split: Split, model: str, seq_len: int, device: Device, ranks: Ranks) -> Run:
    """Resolves a run of one step with SGD."""
    settings: dict[str, object] = {
        **MODELS[split.model],
        "train_batch_size": ROWS,
        "micro_batch_size": split.micro_batch,
        "gradient_clipping": 0.0,
        "weight_decay": 0.0,
        "ds_config.bf16.enabled": split.precision == "bf16",
        "ds_config.optimizer": {"type": "SGD", "params": {"lr": "auto"}},
        "ds_config.zero_allow_untested_optimizer": True,
    }
    arguments = collect_arguments(
        {"model": model, "ds_config": split.ds_config, "seq_len": seq_len, "learning_rate": _RATE,
         "max_steps": 1, "set": settings}
    )  # fmt: skip
    return Run.on(arguments, ranks, device)


def _micro_batches(split: Split, run: ResolvedRun) -> list[Batch]:
    """Gives all micro-batches of the step, over all ranks: rank r takes every ranks-th from r
    on."""
    rows = packed_rows(run, split.packing)
    size = split.micro_batch
    return [collate(rows[at : at + size]) for at in range(0, ROWS, size)]


def packed_rows(run: ResolvedRun, packing: int) -> list[PackedRow]:
    """Packs the same documents in each order. Their lengths and shares of targets differ so much
    that no two micro-batches have equal counts; remaining rows are padding."""
    generator = np.random.default_rng(run.recipe.seed)
    documents, total = [], 0
    while total < 0.7 * ROWS * run.seq_len:
        length = int(generator.integers(2, max(3, run.seq_len // 2)))
        ids = generator.integers(3, run.config.vocab_size, size=length)
        documents.append((ids, generator.random(length) < generator.random()))
        total += length
    lengths = np.array([len(ids) for ids, _ in documents])
    plan = plan_packing(lengths, run.seq_len, window=8, seed=packing)
    assert plan.num_rows <= ROWS, "rows too short for the documents"
    edges = plan.row_offsets.tolist()
    chosen = [plan.piece_doc[a:b] for a, b in itertools.pairwise(edges)]
    chosen += [plan.piece_doc[:0]] * (ROWS - plan.num_rows)
    return [build_row([documents[d] for d in row], run.seq_len, 0) for row in chosen]


class _OneStep:
    """Loads one optimizer step: a rank's micro-batches of a split."""

    fingerprint = "one step"

    def __init__(self, micro_batches: list[Batch]) -> None:
        self._micro_batches = micro_batches

    def read(self, from_step: int, to_step: int, pin: bool = False) -> Iterator[list[Batch]]:
        yield self._micro_batches

    def describe(self, step: int, micro: int) -> list[str]:
        return [f"micro-batch {micro} of the split"]


def step_gradient(run: Run, micro_batches: Sequence[Batch]) -> Mapping[str, Tensor]:
    """Gives the gradient of a run's only step, computed from the change of the weights; empty on
    ranks other than 0."""
    mine = list(micro_batches[run.ranks.rank :: run.ranks.world_size])
    engine = run.build(_OneStep(mine)).loop.engine
    before = engine.full_weights()
    stats = run.step()
    after = engine.full_weights()
    return {name: (before[name] - after[name]) / stats.learning_rate for name in after}


def _reference(split: Split, run: ResolvedRun) -> dict[str, Tensor]:
    """Gives the reference gradient in fp64. In fp32 without experts it comes from the whole step in
    one forward, packed in one order; otherwise from the split's own micro-batches, since bf16
    rounds the gradient of each."""
    batches = _micro_batches(split, run)
    if split.precision == "fp32" and split.model != "experts+aux":
        batches = [collate(packed_rows(run, 0))]
    trained = build_trained(run)
    policy = trained.models.policy.to(dtype=run.dtype).train()
    count = sum(batch.num_targets for batch in batches)
    sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in policy.named_parameters()}
    # The factor that the engine hands to the backward: rounding is then of the same numbers.
    scale = split.ranks / count
    for batch in batches:
        loss = trained.stage.loss(policy, batch.to(run.device.torch_device))
        (_total(loss, batch.num_targets) * scale).backward()
        _move_gradients(policy, sums)
    return {name: (value / split.ranks).cpu() for name, value in sums.items()}


def _total(loss: LossSum, count: int) -> Tensor:
    """Gives the loss to minimise, written out here because the code under audit cannot be its own
    reference."""
    return loss.total if loss.aux_loss is None else loss.total + loss.aux_loss * count


def _move_gradients(policy: nn.Module, sums: dict[str, Tensor]) -> None:
    for name, parameter in policy.named_parameters():
        if parameter.grad is not None:
            sums[name] += parameter.grad
            parameter.grad = None


def bound(split: Split, run: ResolvedRun) -> float:
    """Gives the largest allowed error. In bf16 it is twice the rounding that communication makes;
    where the JSON does not sum in fp32, one rounding for each micro-batch, added as in a random
    walk."""
    if split.precision == "fp32":
        return _FP32_BOUND
    wide = (run.ds_config.get("data_types") or {}).get("grad_accum_dtype") == "fp32"
    return 2 * _BF16_ROUNDING * (1 if wide else split.accumulation) ** 0.5


def main() -> None:
    model, seq_len, output, *ds_configs = sys.argv[1:]
    ranks = read_ranks()
    device = find_device(ranks.local_rank)
    limit_threads(ranks.local_world_size)
    start_ranks(ranks, device)
    splits = list_splits(ds_configs, ranks.world_size)
    found = list(audit(splits, model, int(seq_len), device, ranks))
    if ranks.is_main:
        Path(output).write_text(json.dumps(found))
    stop_ranks()


if __name__ == "__main__":
    main()
