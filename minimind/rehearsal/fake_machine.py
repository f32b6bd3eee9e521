"""Stands in for the machine of a rehearsal: tensors without storage, other ranks, and kernel
launches."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from minimind_kernels import backend
from minimind_kernels.form import Form
from minimind_kernels.triton_impl import config, launch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from minimind.engine import loop
from minimind.engine.deepspeed_engine import import_deepspeed
from minimind.inference.cpu_decode import CpuDecode
from minimind.inference.request import GenerationRequest
from minimind.rehearsal.watch import Watch
from minimind.rewards.scorer import Score, Scorer
from minimind.run import run
from minimind.runtime.devices import Device
from minimind.stages import kto, reference, rollouts


def join_fake_ranks(world_size: int, device: Device) -> None:
    """Makes this process rank 0 of `world_size` ranks. The others do not exist, and need not:
    tensors that they would send have no values in a rehearsal."""
    store: Any = FakeStore()  # type: ignore[no-untyped-call]
    dist.init_process_group("fake", rank=0, world_size=world_size, store=store)
    # gloo cannot open a group over this store, as the engine wants one for objects.
    new_group = dist.new_group
    dist.new_group = lambda *args, **given: new_group(*args, **given | {"backend": "fake"})
    deepspeed = import_deepspeed(device)
    deepspeed.accelerator.get_accelerator()._communication_backend_name = "fake"
    deepspeed.init_distributed(dist_backend="fake", verbose=False, dist_init_required=False)
    # Before a collective ZeRO-3 compares numbers between ranks.
    coordinator = sys.modules["deepspeed.runtime.zero.partitioned_param_coordinator"]
    coordinator.assert_ints_same_as_other_ranks = lambda *_, **__: None  # type: ignore[attr-defined]

    # DeepSpeed's C++ helpers would write to tensors without storage, and take half a minute to
    # compile.
    for name, builder in (("adam", "CPUAdam"), ("adagrad", "CPUAdagrad"), ("lion", "CPULion")):
        optimizers = importlib.import_module(f"deepspeed.ops.{name}.cpu_{name}")
        setattr(optimizers, f"{builder}Builder", mock.MagicMock())

    def gather(found: list[Any], value: Any, *_: Any, **__: Any) -> None:
        found[:] = [value] * len(found)

    dist.all_gather_object = gather
    dist.broadcast_object_list = lambda *_, **__: None


def set_environment(device_kind: str, world_size: int) -> None:
    """Sets the environment variables that a launcher sets; called before PyTorch and DeepSpeed are
    imported."""
    os.environ["DS_ACCELERATOR"] = "cuda" if device_kind == "gpu" else "cpu"
    ranks = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": world_size, "LOCAL_SIZE": world_size}
    os.environ.update({name: str(value) for name, value in ranks.items()})
    os.environ.pop("LOCAL_WORLD_SIZE", None)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@contextlib.contextmanager
def without_storage(watch: Watch, gpu: config.Device) -> Iterator[None]:
    """Makes all tensors inside the block without storage, and reports every operation and launch to
    `watch`. `gpu` is the device for which the Triton launchers choose tiles."""

    def launched(kernel: Any, grid: Any, num_warps: int, arguments: dict[str, Any]) -> None:
        for name, value in arguments.items():
            if isinstance(value, Tensor) and value.device.type != "cuda":
                raise RuntimeError(f"{kernel.__name__}: {name} is on the {value.device}")
        if watch.is_counting:
            watch.tally.add_launch(kernel, arguments)

    patches = [
        mock.patch.object(FakeTensorMode, "avoid_device_init", property(lambda _: True)),
        mock.patch.object(FakeTensor, "tolist", lambda tensor: watch.read_list(tensor)),
        mock.patch.object(Tensor, "pin_memory", lambda tensor, *_, **__: watch.pin(tensor)),
        mock.patch.object(backend, "_why_no_launcher", return_value=None),
        mock.patch.object(nn.Module, "_apply", _apply),
        mock.patch.object(Form, "_run_generated", _run_generated(watch)),
        mock.patch.object(loop, "freeze_objects"),
        mock.patch.object(run, "unfreeze_objects", gc.collect),
        mock.patch.object(reference, "_load_table", _reference_of_nothing),
        mock.patch.object(kto, "_check_answers"),
        # C++ would read from tensors without storage.
        mock.patch.object(CpuDecode, "can_run", return_value=False),
        mock.patch.object(rollouts, "GenerationRequest", _request_without_end),
        mock.patch.object(Scorer, "score", _scores_apart),
    ]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        stack.enter_context(launch.watch(launched, gpu))
        stack.enter_context(watch.fake)
        stack.enter_context(watch)
        yield


def _apply(self: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
    """Replaces nn.Module._apply, which would swap fake tensors for moved ones; PyTorch forbids that
    while other objects refer to them."""
    memo: dict[int, nn.Parameter] = {}
    for module in self.modules() if recurse else [self]:
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in memo:
                with torch.no_grad():
                    moved = function(parameter.data)
                if moved.device == parameter.device and type(moved) is type(parameter.data):
                    parameter.data = moved
                    memo[id(parameter)] = parameter
                else:
                    memo[id(parameter)] = nn.Parameter(moved, parameter.requires_grad)
            module._parameters[name] = memo[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = function(buffer)
    return self


def _run_generated(watch: Watch) -> Callable[..., Any]:
    """Gives a replacement for Form._run_generated: it runs the body, and does not count the
    intermediate tensors, which generated code keeps in registers."""

    def run_body(self: Form, tensors: tuple[Tensor | None, ...], constants: dict[str, Any]) -> Any:
        tensors = tuple(t if t is None else t.detach().contiguous() for t in tensors)
        with watch.live.hidden():
            result = self.body(*tensors, **constants)
        watch.take(result)
        return result

    return run_body


def _reference_of_nothing(
    context: Any, weights: Any, frozen: Any, measure: Any, data: Any, first_unit: int
) -> np.ndarray:
    """Replaces the pass of the reference model over all data: it measures one batch only."""
    batch = next(iter(data.all_batches())).to(context.device)
    with torch.no_grad():
        found_PC = measure(frozen(), batch)
    return np.zeros((data.num_units, found_PC.shape[1]), dtype=np.float32)


def _request_without_end(**options: Any) -> GenerationRequest:
    """Builds a request that no end token ends: sampled tokens have no values here, so all sequences
    would end at once or never."""
    return GenerationRequest(**{**options, "stop_ids": ()})


def _scores_apart(self: Scorer, answers: Sequence[Any]) -> list[Score]:
    """Gives alternate answers 0 and 1, so that their rewards differ and something can be learnt."""
    parts: dict[str, float | None] = dict.fromkeys(self.reward_names, 0.0)
    return [Score(total=float(index % 2), parts=parts) for index, _ in enumerate(answers)]
