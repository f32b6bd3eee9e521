"""Watches every operation of a rehearsal: runs or fakes it, and counts work, memory and waits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from minimind.rehearsal.live_bytes import LiveBytes, moved_bytes, num_bytes_of, tensors_in
from minimind.rehearsal.tally import Tally

_NO_WORK = frozenset(
    (
        *("view", "_unsafe_view", "view_as", "reshape", "_reshape_alias", "flatten", "unflatten"),
        *("t", "transpose", "permute", "squeeze", "unsqueeze", "expand", "as_strided"),
        *("slice", "select", "narrow", "split", "split_with_sizes", "chunk", "unbind"),
        *("detach", "alias", "lift_fresh", "set_", "resize_", "is_pinned", "_pin_memory"),
        *("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"),
    )
)
"""Operators that launch nothing on the device."""
_SIZED_BY_VALUES = ("masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount")
_COLLECTIVES = {
    "reduce_scatter": "reduce_scatter",
    "allgather": "all_gather",
    "allreduce": "all_reduce",
    "alltoall": "all_to_all",
    "broadcast": "broadcast",
    "reduce_": "reduce",
    "barrier": "barrier",
}
_DEVICE = torch.ops.prim.device.default
_LARGEST_WITH_VALUES = 1 << 24
"""The most elements of a host integer tensor that is really computed; such tensors say where
documents and rows begin."""
_ATTENTION = {"_varlen_attn": 4, "_varlen_attn_backward": 10}
"""Products in each attention operator, times the 2 FLOPs of a multiplication: two products forward,
five backward."""
_OWN = str(Path(__file__).parent)
_SHOWN = ("deepspeed/", "minimind/", "minimind_kernels/", "bench/")


class WithoutValues(FakeTensorMode):
    """Makes tensors without storage. The host reads any of their numbers as 0, `all()` of them as
    true and `any()` as false."""

    def __init__(self, read: Callable[[Tensor, str], None]) -> None:
        """Prepares the mode; `read` is called with each tensor that the host reads a number of, and
        the way it reads."""
        super().__init__(allow_non_fake_inputs=True)
        self._read = read
        self._holds: Any = WeakIdKeyDictionary()
        self.host_copies: Any = WeakIdKeyDictionary()
        """For tensors on the device, the host tensor they were copied from: the host knows their
        values without a wait."""

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Overridden here and not in Watch: operators that PyTorch decomposes pass only here.
        name = func._schema.name
        if name == "aten::_local_scalar_dense":
            self._read(args[0], "item")
            known = self.host_copies.get(args[0])
            return args[0] in self._holds or zero(args[0].dtype) if known is None else known.item()
        if name in ("aten::equal", "aten::is_nonzero"):
            self._read(args[0], name.removeprefix("aten::"))
            return True
        if name == "aten::nonzero":  # as many as there may be
            self._read(args[0], "nonzero: its size is read")
            return args[0].new_empty(args[0].numel(), args[0].dim(), dtype=torch.int64)
        result = super().dispatch(func, types, args, kwargs)
        if name == "aten::all":
            self._holds[result] = True
        return result


class Watch(TorchDispatchMode):
    """Runs operators on the host's integers and fakes all others.

    Integers on the host keep their values (token ids, document bounds). Floating-point tensors and
    all tensors of the device have shapes only; where the host reads a number of one, it gets 0.
    """

    def __init__(self, device_type: str, holder: Callable[[], str]) -> None:
        super().__init__()
        self.fake = WithoutValues(self._note_read)
        self.live = LiveBytes(device_type)
        self.tally = Tally()
        self.is_counting = False
        """True while operations are added to the tally."""
        self._device_type = device_type
        self._holder = holder
        self._pinned: Any = WeakIdKeyDictionary()
        self._outside = self.tally, self.is_counting

    def wait(self, kind: str) -> None:
        """Records that the host waits for the device, and where in the code."""
        if self.is_counting:
            self.tally.waits[kind, _find_place()] += 1

    def begin_capture(self) -> None:
        self._outside = self.tally, self.is_counting
        self.tally, self.is_counting = Tally(), True
        self.live.begin_capture()

    def end_capture(self) -> Tally:
        """Gives the work that was captured. Raises RuntimeError where the host waited for the
        device meanwhile."""
        captured = self.tally
        self.tally, self.is_counting = self._outside
        self.live.end_capture()
        if captured.waits:
            raise RuntimeError(f"waits while a graph is captured: {sorted(captured.waits)}")
        return captured

    def replay(self, captured: Tally) -> None:
        """Counts a replayed graph: its work on the device, and one operator of the host."""
        if self.is_counting:
            self.tally.add_replay(captured)

    def pin(self, tensor: Tensor) -> Tensor:
        """Gives a copy of `tensor` that counts as page-locked."""
        copy = tensor.clone()
        self._pinned[copy.untyped_storage()] = True
        return copy

    def read_list(self, tensor: Tensor) -> Any:
        """Gives a tensor's values as nested lists; counts one wait for its device."""
        self._note_read(tensor, "tolist")
        known = self.fake.host_copies.get(tensor)
        if known is not None:
            return known.tolist()
        return np.full(tuple(tensor.shape), zero(tensor.dtype)).tolist()

    def take(self, value: Any) -> None:
        """Counts the memory of tensors that were made without passing through this mode."""
        for tensor in tensors_in(value):
            self.live.see(tensor, self._holder())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is _DEVICE:
            return func(*args)
        kwargs = dict(kwargs or {})
        is_pinned = kwargs.pop("pin_memory", False)
        result = self._run(func, args, kwargs, [*tensors_in(args), *tensors_in(kwargs)])
        for tensor in tensors_in(result):
            self.live.see(tensor, self._holder())
            if is_pinned:
                self._pinned[tensor.untyped_storage()] = True
        return result

    def _run(self, func: Any, args: Any, kwargs: dict[str, Any], given: list[Tensor]) -> Any:
        name = func._schema.name.split("::")[-1]
        is_fake = any(isinstance(tensor, FakeTensor) for tensor in given)
        if given and not is_fake and not _leaves_host(kwargs):
            return _run_on_host(func, args, kwargs)
        if name in _SIZED_BY_VALUES:
            self._note_read(given[0], f"{name}: its size is read")
        if name.startswith("index_put") and any(t.dtype == torch.bool for t in tensors_in(args[1])):
            self._note_read(given[0], f"{name}: its mask is read")
        if name in ("_to_copy", "copy_"):
            self._note_copy(name, args, kwargs)
            args = tuple(self._without_values(arg) for arg in args)
        result = func(*args, **kwargs)
        if not given and _is_integer_of_host(result):
            return _run_on_host(func, args, kwargs)
        if name == "_to_copy" and not is_fake and given[0].numel() <= _LARGEST_WITH_VALUES:
            self.fake.host_copies[result] = given[0]
        if name == "clone" and (known := self.fake.host_copies.get(given[0])) is not None:
            self.fake.host_copies[result] = known
        if self.is_counting:
            self._count(func, name, args, kwargs, given, result)
        return result

    def _without_values(self, value: Any) -> Any:
        is_known = isinstance(value, Tensor) and not isinstance(value, FakeTensor)
        return self.fake.from_tensor(value) if is_known else value

    def _note_read(self, tensor: Tensor, what: str) -> None:
        if tensor.device.type == "cuda":
            self.wait(what)

    def _note_copy(self, name: str, args: Any, kwargs: Any) -> None:
        source = args[1] if name == "copy_" else args[0]
        if not isinstance(source, Tensor):
            return
        if name == "copy_":
            target, is_async = args[0].device, len(args) > 2 and args[2]
        else:
            target = torch.device(kwargs.get("device") or source.device)
            is_async = kwargs.get("non_blocking", False)
        kinds = source.device.type, target.type
        if kinds[0] == kinds[1] or "cuda" not in kinds or "meta" in kinds:
            return
        if not is_async:
            self.wait(f"blocking copy {kinds[0]} to {kinds[1]}")
        elif kinds[0] == "cpu" and source.untyped_storage() not in self._pinned:
            self.wait("copy of pageable memory cpu to cuda")

    def _count(
        self, func: Any, name: str, args: Any, kwargs: Any, given: list[Tensor], result: Any
    ) -> None:
        if func.namespace in ("c10d", "_c10d_functional"):
            kind = next((kind for part, kind in _COLLECTIVES.items() if part in name), name)
            payload = max((num_bytes_of(tensor) for tensor in given), default=0)
            self.tally.add_collective(kind, payload)
            return
        results = list(tensors_in(result))
        on_device = any(t.device.type == self._device_type for t in (*given[:1], *results[:1]))
        if name in _NO_WORK or not on_device:
            return
        if name in _ATTENTION:
            flops = _ATTENTION[name] * self._count_attended(given)
        else:
            count_flops = flop_registry.get(func._overloadpacket)
            # A product with an `out_dtype`: PyTorch's formula for addmm does not expect one.
            shaped = [value for value in args if not isinstance(value, torch.dtype)]
            flops = count_flops(*shaped, **kwargs, out_val=result) if count_flops else 0
        # A product of narrow factors is quick, also where its sums are wide.
        is_wide = all(tensor.dtype.itemsize > 2 for tensor in given)
        self.tally.add_operator(name, int(flops), moved_bytes([*given, *results]), is_wide)

    def _count_attended(self, given: list[Tensor]) -> int:
        """Counts the multiplications of one attention product (queries by keys), over the causal
        half of every document."""
        query = next(t for t in given if t.dim() == 3)
        bounds = next(t for t in given if t.dtype == torch.int32)
        known = self.fake.host_copies.get(bounds)
        squares = int(known.diff().double().square().sum()) if known is not None else 0
        return query.shape[1] * query.shape[2] * squares // 2


def zero(dtype: torch.dtype) -> float | int | bool:
    """Gives the number that the host reads from a tensor without values."""
    return 0.0 if dtype.is_floating_point else False if dtype == torch.bool else 0


def _run_on_host(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    with _disable_current_modes():
        return func(*args, **kwargs)


def _leaves_host(kwargs: dict[str, Any]) -> bool:
    device = kwargs.get("device")
    return device is not None and torch.device(device).type != "cpu"


def _is_integer_of_host(value: Any) -> bool:
    return (
        isinstance(value, FakeTensor)
        and value.device.type == "cpu"
        and not value.dtype.is_floating_point
        and value.numel() <= _LARGEST_WITH_VALUES
    )


def _find_place() -> str:
    """Names the two innermost code lines of MiniMind or DeepSpeed on the call stack."""
    found: list[str] = []
    frame = sys._getframe(1)
    while frame is not None and len(found) < 2:
        if short := _shorten(frame.f_code.co_filename):
            found.append(f"{short}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(found) or "?"


def _shorten(path: str) -> str | None:
    """Gives a file's path from its package on; None for a file of this package or of a package that
    is not shown."""
    if path.startswith(_OWN):
        return None
    _, is_installed, inside = path.rpartition("/site-packages/")
    if is_installed:
        return inside if inside.startswith(_SHOWN) else None
    return next((n + path.rpartition(f"/{n}")[2] for n in _SHOWN if f"/{n}" in path), None)
