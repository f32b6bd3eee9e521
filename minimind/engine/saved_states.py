"""Takes a checkpoint's optimizer state apart by parameter, and sets it in another engine.

So a run goes on under another number of ranks, ZeRO stage or precision, each of which lays its
states out differently. Weights and moments are fp32 everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minimind.engine.parameter_groups import trained_parameters
from minimind.engine.shards import STAND_IN, explain_unreadable, without_code
from minimind.engine.state_layout import find_layout
from minimind.errors import CheckpointError


@dataclass(slots=True)
class SavedStates:
    """Holds what an optimizer remembers, by the names of the parameters."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    moments: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Each parameter's states that have the parameter's shape, by the optimizer's names for them,
    such as exp_avg."""
    counters: dict[str, float] = field(default_factory=dict)
    """Numbers that all parameters share, such as step."""
    loss_scale: float | None = None
    """fp16's loss scale; None where the states hold none."""
    scheduler: dict[str, Any] | None = None
    """The state of the JSON's learning-rate scheduler."""

    def fill(self, module: nn.Module) -> None:
        """Sets the trained parameters, before an engine takes them. Raises CheckpointError where
        one is missing."""
        for name, parameter in trained_parameters(module):
            if name not in self.weights:
                raise CheckpointError(f"the optimizer's states hold no {name}")
            parameter.data.copy_(self.weights[name].view_as(parameter))

    def add(self, name: str, states: Mapping[str, Any]) -> None:
        """Adds the states of one parameter, whose weight is known."""
        for key, value in states.items():
            if isinstance(value, Tensor) and value.dtype == STAND_IN:
                continue
            if isinstance(value, Tensor) and value.numel() == self.weights[name].numel():
                self.moments.setdefault(name, {})[key] = value
            elif isinstance(value, Tensor | int | float):
                self.counters[key] = float(value)


def read_converted(folder: Path) -> SavedStates:
    """Reads the folder into which DeepSpeed's converter has written the shards of ZeRO stages 1 to
    3. Tensors stay in their files until they are used."""
    found = SavedStates()
    common = _load(folder / "zero" / "optimizer_state.pt")
    if (scaler := common.get("loss_scaler")) is not None:
        found.loss_scale = float(scaler.cur_scale)
    for part in sorted((folder / "zero").iterdir()):
        if part.is_dir():
            files = {file.stem: _load(file) for file in part.glob("*.pt")}
            # Stages 1 and 2 come with the dimension along which tensor parallelism cuts.
            states = {k: v["param"] if isinstance(v, dict) else v for k, v in files.items()}
            found.weights[part.name] = states.pop("fp32")
            found.add(part.name, states)
    for state in (common.get("optimizer_state_dict") or {}).get("state", {}).values():
        found.counters |= {k: float(v) for k, v in state.items() if k == "step"}
    _read_rest(found, common.get("param_groups", ()), next(folder.glob("*model_states.pt")))
    return found


def read_replicated(file: Path, names: Sequence[Sequence[str]]) -> SavedStates:
    """Reads a checkpoint of ZeRO stage 0. `names` holds the names of the parameters in each of the
    optimizer's groups."""
    shard = _load(file)
    found, saved = SavedStates(), shard["optimizer"]
    found.loss_scale = saved.get("cur_scale")
    inner = saved.get("optimizer_state_dict", saved)
    shapes = {name: tensor.shape for name, tensor in shard["module"].items()}
    flat = saved.get("fp32_groups_flat")
    masters = flat or [m for group in saved.get("fp32_groups", ()) for m in group]
    keys = [[",".join(group)] for group in names] if flat else names
    for index, key in enumerate(key for group in keys for key in group):
        parts = key.split(",")
        sizes = [shapes[name].numel() for name in parts]
        weights = _parts(masters[index], sizes) if masters else [shard["module"][key]]
        states = inner["state"].get(index, {})
        divided = {k: v for k, v in states.items() if isinstance(v, Tensor) and v.dim()}
        for place, name in enumerate(parts):
            found.weights[name] = weights[place].float()
            own = {k: _parts(v, sizes)[place] for k, v in divided.items()}
            found.add(name, states | own)
    _read_rest(found, inner["param_groups"], file)
    return found


def _parts(tensor: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    return tensor.reshape(-1)[: sum(sizes)].split(list(sizes))


def _read_rest(found: SavedStates, groups: Iterable[Mapping[str, Any]], shard: Path) -> None:
    # DeepSpeed's FusedAdam counts steps in its groups.
    for group in groups:
        if "step" in group:
            found.counters["step"] = float(group["step"])
    found.scheduler = _load(shard).get("lr_scheduler")


def _load(path: Path) -> Any:
    try:
        with without_code():
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise CheckpointError(explain_unreadable(path, str(error))) from error


def set_states(optimizer: Any, zero_stage: int, module: nn.Module, states: SavedStates) -> None:
    """Sets the moments and counters of DeepSpeed's `optimizer`, whose weights `fill` has set.
    Raises CheckpointError for an optimizer that keeps its states on disk."""
    if getattr(optimizer, "swap_optimizer", False):
        raise CheckpointError(
            "an optimizer whose states lie on disk (offload_optimizer to nvme) can only be resumed "
            "under the ZeRO stage, precision and number of ranks that saved it"
        )
    inner = getattr(optimizer, "optimizer", optimizer)
    names: dict[Tensor, str] = {p: name for name, p in trained_parameters(module)}
    counting = [group for group in inner.param_groups if "step" in group]
    for group in counting:
        group["step"] = int(states.counters.get("step", 0))
    counters = {k: v for k, v in states.counters.items() if k != "step" or not counting}
    for flat, parts in find_layout(optimizer, zero_stage, module):
        own = inner.state[flat]
        for part in parts:
            for key, value in states.moments.get(names[part.parameter], {}).items():
                if key not in own:
                    own[key] = torch.zeros_like(flat, dtype=torch.float32)
                piece = part.taken(value.reshape(-1))
                own[key].view(-1)[part.start : part.start + piece.numel()].copy_(piece)
        for key, value in counters.items():
            own[key] = _counter(inner, flat, value)
    if states.loss_scale and float(getattr(optimizer, "loss_scale", None) or 1.0) != 1.0:
        scaler = optimizer.loss_scaler if zero_stage else optimizer
        scaler.cur_scale = states.loss_scale


def _counter(inner: Any, flat: Tensor, value: float) -> Any:
    """Gives a counter as the optimizer keeps it: PyTorch's in tensors, DeepSpeed's as int."""
    if not isinstance(inner, torch.optim.AdamW) and not type(inner).__module__.startswith("torch."):
        return int(value)
    on_device = any(group.get("fused") or group.get("capturable") for group in inner.param_groups)
    return torch.tensor(value, dtype=torch.float32, device=flat.device if on_device else "cpu")
