"""One optimizer step of a preset, counted exactly on any machine: what a GPU would be asked to do.

The loop, the stage and the model run in bf16 on tensors without storage, with the Triton bodies and
the attention that a GPU gets. An operator that needs a value on the host (what makes a host wait)
has none to read there, so it would not only be counted: it would fail. What DeepSpeed itself
dispatches is not in it; bench.train_step counts that, on the machine it runs on.

`python -m bench.step_counts --json FILE` writes the counts down.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast
from unittest import mock

import minimind_kernels as K
import torch
from minimind_kernels.linear_loss import linear_cross_entropy_reference
from minimind_kernels.rms_norm import add_rms_norm_reference, rms_norm_reference
from minimind_kernels.rope import qk_rope_reference
from minimind_kernels.swiglu import swiglu_reference
from torch import Tensor, nn

from bench import compile_report, harness
from bench.counts import count_step
from bench.plain_loop import BareEngine
from minimind.model import transformer
from minimind.model.document_attention import VarlenPlan
from minimind.model.transformer import Transformer
from minimind.run.build import build_loop
from minimind.run.run import Run, collect_arguments
from minimind.runtime.devices import find_device
from minimind.runtime.ranks import Ranks
from minimind.stages import STAGES
from minimind.types import Batch

DENSE, EXPERTS = "minimind2-small", "minimind2-moe"
ROWS, ROW_TOKENS = 16, 1024
"""One micro-batch of as many tokens as the kernels are measured on."""
_META = torch.device("meta")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.step_counts", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="results file")
    path = parser.parse_args(argv).json
    machine = harness.describe_machine(find_device())
    harness.write_results(path, "step_counts", machine, {}, count_steps())
    return 0


def count_steps() -> list[dict[str, Any]]:
    """A dense model with all operations in their plain form and as kernels, and one with experts,
    whose plain form asks the host for each expert's share."""
    kernels = contextlib.nullcontext
    steps = (
        (DENSE, "plain forms", _plain_forms),
        (DENSE, "kernels", kernels),
        (EXPERTS, "kernels", kernels),
    )
    return [
        {
            "name": f"{model}, {name}",
            "model": model,
            "tokens": ROWS * ROW_TOKENS,
            **_count(model, forms),
        }
        for model, name, forms in steps
    ]


def _count(
    model: str, forms: Callable[[], contextlib.AbstractContextManager[Any]]
) -> dict[str, Any]:
    run = Run.on(collect_arguments({"model": model}), Ranks(0, 0, 1), find_device()).resolved
    with _META:
        module = Transformer(run.config).to(torch.bfloat16)
    engine, no_data = cast(Any, BareEngine(module, _META)), cast(Any, None)
    loop = build_loop(run, STAGES[run.stage](run.recipe), engine, no_data, total_steps=2)
    launches: list[str] = []

    def take_step() -> None:
        launches.clear()
        loop.step([_batch()])

    watched = compile_report.launches_to(
        lambda kernel, *_: launches.append(kernel.__name__), compile_report.TARGETS["sm_90"][1]
    )
    with _gpu_attention(), forms(), watched:
        take_step()  # the RoPE tables are made once
        counts = count_step(take_step, _META)
        kept_bytes = _count_kept(take_step, module)
    return {
        "dispatched_operators": counts["dispatched_operators"],
        "kernel_launches": len(launches),
        "sync_operators": counts["sync_operators"],
        "parameter_tensors": len(list(module.parameters())),
        "kept_bytes_per_token": kept_bytes // (ROWS * ROW_TOKENS),
    }


def _count_kept(take_step: Callable[[], None], module: nn.Module) -> int:
    """What the forward keeps for the backward beside the parameters, a storage once."""
    weights = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        take_step()
    return sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in weights)


def _batch() -> Batch:
    """Rows of one document each, on the host as the loader gives them."""
    places = torch.arange(ROW_TOKENS).repeat(ROWS, 1)
    return Batch(
        ids_BT=places,
        labels_BT=places,
        positions_BT=places,
        is_token_BT=torch.ones_like(places, dtype=torch.bool),
        cu_seqlens=torch.arange(0, (ROWS + 1) * ROW_TOKENS, ROW_TOKENS, dtype=torch.int32),
        bounds=tuple(range(0, (ROWS + 1) * ROW_TOKENS, ROW_TOKENS)),
        max_len=ROW_TOKENS,
        num_tokens=ROWS * ROW_TOKENS,
        num_targets=ROWS * ROW_TOKENS,
    )


@contextlib.contextmanager
def _gpu_attention() -> Iterator[None]:
    def plan(batch: Batch, *_: Any) -> VarlenPlan:
        return VarlenPlan(batch.cu_seqlens, batch.max_len)

    with mock.patch.object(transformer, "plan_attention", plan):
        yield


@contextlib.contextmanager
def _plain_forms() -> Iterator[None]:
    def cross_entropy(hidden_MD: Tensor, weight_VD: Tensor, labels_M: Tensor, **_: Any) -> Tensor:
        return linear_cross_entropy_reference(hidden_MD, weight_VD, labels_M)

    def swiglu_linear(gate_up: Tensor, weight_DF: Tensor) -> Tensor:
        return nn.functional.linear(swiglu_reference(gate_up), weight_DF)

    plain = {
        "rms_norm": rms_norm_reference,
        "add_rms_norm": add_rms_norm_reference,
        "qk_rope": qk_rope_reference,
        "swiglu": swiglu_reference,
        "swiglu_linear": swiglu_linear,
        "linear_cross_entropy": cross_entropy,
    }
    with mock.patch.multiple(K, **plain):
        yield


if __name__ == "__main__":
    sys.exit(main())
