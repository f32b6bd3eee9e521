"""Corrects ZeRO stage 0 in 16 bits, so that it takes the same steps as plain PyTorch with fp32
masters.

DeepSpeed 0.19.8 trains such a run with the optimizer of its old fp16 engine, which

- creates the optimizer's states by a step on zero gradients: Adam's step counter, and so its bias
  correction, is one step ahead for the whole run (deepspeedai/DeepSpeed#5104 is about the same
  step in stages 1 to 3);
- adds up micro-batches, averages over ranks and takes the norm in 16 bits;
- divides by fp16's loss scale, by which the engine has not multiplied;
- checks every single gradient for overflow and waits for a GPU each time, even where the JSON
  turns `check_grad_overflow` off.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import Tensor, nn

from minimind.config.deepspeed_json import precision
from minimind.engine.replaced_names import replaced_names
from minimind.engine.state_layout import find_layout


@contextlib.contextmanager
def without_first_step(deepspeed: Any) -> Iterator[None]:
    """Makes DeepSpeed's 16-bit optimizers without ZeRO, if made inside the block, create their
    states in the first real step. `deepspeed` is the module."""
    fp16 = deepspeed.runtime.fp16
    nothing = {"initialize_optimizer_states": lambda self: None}
    with (
        replaced_names(fp16.fused_optimizer.FP16_Optimizer, nothing),
        replaced_names(fp16.unfused_optimizer.FP16_UnfusedOptimizer, nothing),
    ):
        yield


def left_to_deepspeed(ds_config: Mapping[str, Any]) -> dict[str, Any]:
    """Gives the JSON of a stage-0 run without the parts that DeepSpeed gets wrong or refuses at
    that stage: the engine clips itself and always sums gradients in fp32."""
    config = dict(ds_config)
    config["gradient_clipping"] = 0.0  # left out, it would be 1
    config.setdefault("communication_data_type", "fp32")
    kinds = dict(config.get("data_types") or {})
    kinds.pop("grad_accum_dtype", None)
    config["data_types"] = kinds
    return config


def mend(
    module: nn.Module, optimizer: Any, ds_config: Mapping[str, Any], *, skips: bool
) -> dict[nn.Parameter, Tensor]:
    """Makes gradients be summed in fp32. In bf16 it also turns off DeepSpeed's check of every
    gradient for overflow, unless the JSON or `skips` (a step that is not finite is skipped) needs
    the check. Gives the fp32 master of each trained parameter.

    `optimizer` is DeepSpeed's; `ds_config` is resolved, with bf16 or fp16 enabled.
    """
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad_dtype = None  # a gradient may have any dtype
            parameter.register_post_accumulate_grad_hook(_widen)
    checks = skips or ds_config.get("bf16", {}).get("check_grad_overflow", True)
    if precision(ds_config) == "bf16" and not checks:
        checker = optimizer.overflow_checker
        checker.check = checker.has_overflow = lambda *_: False
    # DeepSpeed's own accessors do not find these masters.
    return {
        cast(nn.Parameter, part.parameter): part.whole(flat.view(1, -1)).view(part.shape)
        for flat, parts in find_layout(optimizer, 0, module)
        for part in parts
    }


def _widen(parameter: Tensor) -> None:
    assert parameter.grad is not None
    # From the second micro-batch on the gradient is fp32 already: autograd adds in place.
    parameter.grad = parameter.grad.float()
