"""Clips a step's gradient without making the host wait for the device.

The gradient is that of the whole step. First each element is clamped to `clip_value`, if the recipe
sets it; then the gradient is scaled so that its norm is at most `gradient_clipping`. DeepSpeed
0.19.8 asks the host whether the norm is finite, which waits for a GPU in the middle of each step,
and again for each group of parameters. Here the same arithmetic stays on the device.

DeepSpeed skips a step whose norm is not finite; here PyTorch's fused Adam skips it on the device,
as it does for a GradScaler. Other optimizers still ask the host, once a step, and so does fp16,
whose loss scale is kept on the host.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minimind.engine.replaced_names import replaced_names
from minimind.errors import ConfigError


def clip_replicated(
    module: nn.Module, max_norm: float, max_value: float, loss_scale: float
) -> Tensor:
    """Clips gradients that every rank holds in full, and gives their norm before it is limited to
    `max_norm` (fp64 scalar). Used at ZeRO stage 0, where DeepSpeed computes no norm, or the norm of
    gradients rounded to 16 bits.

    The gradients come multiplied by `loss_scale`. A limit of 0 means no limit.
    """
    parameters = [p for p in module.parameters() if p.grad is not None]
    grads = [p.grad for p in parameters if p.grad is not None]
    _clamp(grads, max_value * loss_scale)
    norm = torch.linalg.vector_norm(_norms(grads))
    if max_norm:
        nn.utils.clip_grads_with_norm_(parameters, max_norm * loss_scale, norm)
    return norm / loss_scale


def clip_on_device(optimizer: Any, max_value: float, *, skips: bool = False) -> None:
    """Makes DeepSpeed's ZeRO optimizer clip on the device: each element to `max_value`, if that is
    not 0, and the gradient to the norm in its JSON. DeepSpeed's own clipping stays where the
    optimizer states are on the CPU, and where the installed DeepSpeed has other internal names; in
    the latter case a `max_value` raises ConfigError. With `skips`, a step whose gradient is not
    finite is skipped, whatever the JSON says about bf16."""
    if skips and hasattr(optimizer, "check_grad_overflow"):
        optimizer.check_grad_overflow = True
    offloads = ("cpu_offload", "offload_optimizer")
    if not any(getattr(optimizer, name, False) for name in offloads):
        replace = _BY_OPTIMIZER.get(type(optimizer).__name__)
        module = sys.modules[type(optimizer).__module__]
        if replace is not None and replace(optimizer, module, max_value):
            return
    if max_value:
        raise ConfigError(
            f"clip_value {max_value}: this version of DeepSpeed clips otherwise than 0.19.8; set "
            "clip_value=0, or zero_optimization.stage to 0"
        )


def _clip_partitions(optimizer: Any, module: ModuleType, max_value: float) -> bool:
    """Replaces the clipping of ZeRO stages 1 and 2; false where DeepSpeed has other internal
    names."""
    names = ("get_grad_norm_direct", "scaled_global_norm", "unscale_and_clip_grads")
    if not _has(optimizer, "averaged_gradients", "dp_process_group", *names):
        return False

    def group_norm(grads: Sequence[Tensor], params: Any, norm_type: int = 2) -> Tensor:
        return _norm_over_ranks(grads, optimizer.dp_process_group, torch.float32)

    def unscale_and_clip(flat_grads: Sequence[Tensor], norm: Tensor) -> None:
        scale = optimizer.loss_scale
        if optimizer.clip_grad > 0.0:
            norm = torch.where(_is_invalid(norm), float("inf"), norm)
            # The norm is that of gradients multiplied by the loss scale.
            scale = (((norm / scale) + 1e-6) / optimizer.clip_grad).clamp(min=1.0) * scale
        elif scale == 1.0:
            return
        for grad in flat_grads:
            grad.mul_(1.0 / scale)

    optimizer.get_grad_norm_direct = group_norm
    optimizer.unscale_and_clip_grads = unscale_and_clip
    _clamp_before(optimizer, "scaled_global_norm", max_value)
    # With bf16 and without check_grad_overflow, such a step is taken.
    if optimizer.dtype != torch.bfloat16 or optimizer.check_grad_overflow:
        _skip_on_device(optimizer, module)
    return True


def _clip_sub_groups(optimizer: Any, module: ModuleType, max_value: float) -> bool:
    """Replaces the clipping of ZeRO stage 3, which asks the host only whether the norm is
    finite."""
    names = ("get_grad_norm_direct", "_get_norm_groups", "_get_param_partition_group")
    if not _has(optimizer, "averaged_gradients", *names):
        return False

    def group_norm(grads: Sequence[Tensor], params: Sequence[Any], norm_type: int = 2) -> Tensor:
        group = optimizer._get_param_partition_group(params[0])
        return _norm_over_ranks(grads, group, torch.float64)

    optimizer.get_grad_norm_direct = group_norm
    _clamp_before(optimizer, "_get_norm_groups", max_value)
    _skip_on_device(optimizer, module)
    return True


def _clip_flat(optimizer: Any, module: ModuleType, max_value: float) -> bool:
    """Replaces the clipping of ZeRO stage 1 where bf16 gradients are summed in fp32; every rank
    holds those sums in full."""
    names = ("get_global_norm_of_tensors", "clip_tensors_by_global_norm")
    if not _has(module, *names) or optimizer.has_moe_layers or optimizer.mpu is not None:
        return False

    def norm_of_all(input_tensors: Sequence[Tensor], **_: Any) -> Tensor:
        _clamp(input_tensors, max_value)
        norm = torch.linalg.vector_norm(_norms(input_tensors)).float()
        return torch.where(_is_invalid(norm), float("inf"), norm)

    def clip(input_tensors: Sequence[Tensor], max_norm: float, global_norm: Tensor, **_: Any):
        scale = (max_norm / (global_norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(list(input_tensors), scale)  # type: ignore[attr-defined]

    _step_with(optimizer, module, dict(zip(names, (norm_of_all, clip), strict=True)))
    _skip_on_device(optimizer, module)
    return True


_BY_OPTIMIZER: dict[str, Callable[[Any, ModuleType, float], bool]] = {
    "DeepSpeedZeroOptimizer": _clip_partitions,
    "DeepSpeedZeroOptimizer_Stage3": _clip_sub_groups,
    "BF16_Optimizer": _clip_flat,
}


def _has(thing: Any, *names: str) -> bool:
    return all(hasattr(thing, name) for name in names)


def _clamp_before(optimizer: Any, name: str, max_value: float) -> None:
    """Clamps each step's gradient before the optimizer's method `name`, which takes its norms.
    fp16's overflow check comes earlier, so the clamp cannot hide an overflow from it."""
    method = getattr(optimizer, name)

    def clamped(*args: Any) -> Any:
        for grads in optimizer.averaged_gradients.values():
            _clamp(grads, max_value * optimizer.loss_scale)
        return method(*args)

    if max_value:
        setattr(optimizer, name, clamped)


def _skip_on_device(optimizer: Any, module: ModuleType) -> None:
    """Lets the fused Adam skip a step whose norm is not finite, instead of asking the host."""
    updates = optimizer.optimizer
    is_adam = isinstance(optimizer.optimizer, torch.optim.Adam | torch.optim.AdamW)
    is_fused = is_adam and all(group.get("fused") for group in updates.param_groups)
    is_fp16 = getattr(optimizer, "dtype", None) == torch.float16
    if is_fp16 or not is_fused or not _has(module, "is_invalid_grad_norm"):
        return

    def skip(norm: Tensor) -> bool:
        updates.found_inf = _is_invalid(norm).float()
        return False

    _step_with(optimizer, module, {"is_invalid_grad_norm": skip})


def _step_with(optimizer: Any, module: ModuleType, functions: dict[str, Any]) -> None:
    """Replaces `functions` of the optimizer's module while its step runs."""
    step = optimizer.step

    def stepping(*args: Any, **kwargs: Any) -> Any:
        with replaced_names(module, functions):
            return step(*args, **kwargs)

    optimizer.step = stepping


def _norm_over_ranks(grads: Sequence[Tensor], group: Any, dtype: torch.dtype) -> Tensor:
    """Gives the norm of a gradient whose parts are spread over the ranks of `group`; -1 where it is
    not finite, as in DeepSpeed. The ranks' squares are summed in `dtype`."""
    own = [grad for grad in grads if not getattr(grad, "_zero_padding", False)]
    # A rank may hold only padding.
    total = _norms(own or grads).pow(2).sum().to(dtype)
    if dist.get_world_size(group) > 1:
        dist.all_reduce(total, group=group)
    norm = total.pow(0.5)
    return norm.masked_fill_(~norm.isfinite(), -1.0)


def _norms(grads: Sequence[Tensor]) -> Tensor:
    """Gives each tensor's norm in fp64, so that the order of additions does not reach fp32's
    digits. On a GPU one kernel computes all norms, adding in fp64 without a copy."""
    norms = torch._foreach_norm(list(grads), 2, dtype=torch.float64)  # type: ignore[attr-defined]
    return torch.stack(norms)


def _is_invalid(norm: Tensor) -> Tensor:
    return ~torch.isfinite(norm) | (norm < 0)


def _clamp(grads: Sequence[Tensor] | None, limit: float) -> None:
    """Clamps the tensors to [-limit, limit] in place; NaN stays NaN. A limit of 0 means no
    limit."""
    if grads and limit:
        torch._foreach_clamp_min_(list(grads), -limit)  # type: ignore[attr-defined]
        torch._foreach_clamp_max_(list(grads), limit)  # type: ignore[attr-defined]
