"""Reads the weights of DeepSpeed's shards, `engine/` in a checkpoint, of any ZeRO stage and number
of ranks, one tensor at a time.

Under ZeRO a rank's file of optimizer states holds its share of the fp32 weights: at stages 1 and 2
a piece of all weights side by side, with a table of what lies where; at stage 3 an equal share of
each weight, in the order that the file of model states gives. Without ZeRO there is one file, with
the weights in 16 bits by name and the fp32 weights without names.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minimind.config.json_file import load_json
from minimind.config.model import ModelConfig
from minimind.data.same_tokens import has_tokenizer
from minimind.engine.shards import PLAIN_CLASSES
from minimind.errors import CheckpointError, ConfigError
from minimind.interop.options import ConvertOptions
from minimind.interop.pickle_file import load_pickle
from minimind.interop.source import LazyTensor, LazyTensors, Source, check_tensors
from minimind.interop.training_record import read_training
from minimind.lora.folder import META_FILE
from minimind.model.state_dict import inside_shapes, outside_shapes, split_lazily
from minimind.runtime.digests import DIGESTS, check_digests

_FOLDER = "engine"
_OPTIMIZER_FILE = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt")
_MODEL_FILE = "mp_rank_00_model_states.pt"
_POLICY = "policy."
"""Begins the names of the model's weights in a run that trains a critic too."""


@dataclass
class _Fragment:
    """Says where a weight's piece lies in a rank's share: DeepSpeed's `fragment_address`."""

    numel: int = 0
    start: int = 0


class _Ignored:
    """Stands for an object that holds no weights."""

    def __init__(self, *_: Any) -> None: ...


_STAND_INS: dict[str, type] = {
    f"{module}.{name}": _Fragment if name == "fragment_address" else _Ignored
    for module, name in PLAIN_CLASSES
}
"""DeepSpeed's classes in its files: they are read without DeepSpeed and without its code."""

_Pieces = dict[str, list[Tensor]]
"""The flat fp32 pieces of each weight, by its name in the model; joined in order they are the
weight, possibly with padding after it."""


def detect(path: Path) -> bool:
    """Tells whether `path` is an `engine` folder of MiniMind, or a checkpoint that has no other
    weights."""
    return _find(path) is not None


def _find(path: Path) -> Path | None:
    """Finds the folder of shards that `path` means."""
    for folder in (path, path / _FOLDER):
        has_shards = any(folder.glob("*mp_rank_*_model_states.pt"))
        if has_shards and (folder.parent / META_FILE).is_file():
            return folder
    return None


def open_shards(path: Path, options: ConvertOptions) -> Source:
    """Opens a folder of shards. Raises CheckpointError where a rank's file is missing, damaged, of
    another checkpoint, or holds adapters alone."""
    options.check_only_tokenizer(path)
    folder = _find(path)
    assert folder is not None
    meta = _read_meta(folder.parent / META_FILE)
    config = _read_config(meta, folder)
    pieces = _read_pieces(folder, meta)
    written = {n: d for n, d in meta[DIGESTS].items() if n.startswith(f"{folder.name}/")}
    check_digests(folder.parent, {DIGESTS: written})
    notes = [
        f"read from the shards of {meta['world_size']} rank(s), ZeRO stage {meta['zero_stage']}"
    ]
    if any(name.startswith(_POLICY) for name in pieces):
        notes.append("the critic is left out")
        pieces = {
            name.removeprefix(_POLICY): tensors
            for name, tensors in pieces.items()
            if name.startswith(_POLICY)
        }
    if adapters := [name for name in pieces if "lora_" in name]:
        raise CheckpointError(
            f"{folder}: holds adapters alone ({adapters[0]}, ...): convert "
            f"{folder.parent / 'adapter'}"
        )
    beside = folder.parent / "model"
    tokenizer = options.tokenizer or beside
    return Source(
        path=folder,
        config=config,
        tensors=check_tensors(config, _named(config, pieces, str(folder))),
        tokenizer=tokenizer if has_tokenizer(tokenizer) else None,
        notes=notes,
        training=read_training(beside),
    )


def _named(config: ModelConfig, pieces: _Pieces, origin: str) -> LazyTensors:
    """Gives the tensors under Hugging Face's names. Raises CheckpointError where a weight of the
    model is missing, too small, or another one is there."""
    shapes = inside_shapes(config)
    for name, shape in shapes.items():
        needed, found = math.prod(shape), sum(piece.numel() for piece in pieces.get(name, ()))
        if found < needed:
            raise CheckpointError(
                f"{origin}: {found:,} of {needed:,} values of {name} are there: are the files of "
                "all ranks in the folder, and of the same checkpoint?"
            )
    if others := sorted(set(pieces) - set(shapes)):
        raise CheckpointError(f"{origin}: not of this model: {', '.join(others[:5])}")
    last: dict[str, Tensor] = {}

    def read(name: str) -> Tensor:
        if name not in last:  # the parts of a fused tensor are asked for one after another
            flat = torch.cat([piece.float() for piece in pieces[name]])
            last.clear()
            last[name] = flat[: math.prod(shapes[name])].view(shapes[name])
        return last[name]

    outside, parts = outside_shapes(config), split_lazily(config, read)
    entries = {n: LazyTensor(outside[n], torch.float32, part) for n, part in parts.items()}
    return LazyTensors(entries, origin)


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = load_json(path)
        fields = {name: meta[name] for name in ("model", "world_size", "zero_stage")}
        fields["model"] = dict(fields["model"])
        return fields | {DIGESTS: dict(meta.get(DIGESTS) or {})}
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path}: not the description of a checkpoint") from None


def _read_config(meta: dict[str, Any], folder: Path) -> ModelConfig:
    try:
        return ModelConfig.from_dict(meta["model"], str(folder.parent / META_FILE))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def _read_pieces(folder: Path, meta: dict[str, Any]) -> _Pieces:
    stage, world_size = meta["zero_stage"], meta["world_size"]
    try:
        if stage == 0:
            return _pieces_without_zero(load_pickle(folder / _MODEL_FILE, _STAND_INS))
        states = [state["optimizer_state_dict"] for state in _load_ranks(folder, world_size)]
        if stage < 3:
            return _pieces_of_stages_1_and_2(states)
        model = load_pickle(folder / f"zero_pp_rank_0_{_MODEL_FILE}", _STAND_INS)
        return _pieces_of_stage_3(states, model["param_shapes"])
    # torch raises RuntimeError for a piece that lies outside of its share.
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder}: not DeepSpeed's shards of ZeRO stage {stage}: {error!r}"
        ) from None


def _load_ranks(folder: Path, world_size: int) -> list[dict[str, Any]]:
    """Loads each rank's optimizer states, in the order of the ranks."""
    files: dict[int, Path] = {}
    for file in folder.iterdir():
        if found := _OPTIMIZER_FILE.fullmatch(file.name):
            files[int(found[1])] = file
    missing = next((rank for rank in range(world_size) if rank not in files), None)
    if missing is not None:
        raise CheckpointError(
            f"{folder}: the file of rank {missing} is missing "
            f"(*zero_pp_rank_{missing}_mp_rank_00_optim_states.pt), of {world_size} ranks"
        )
    if len(files) > world_size:
        raise CheckpointError(
            f"{folder}: holds the files of {len(files)} ranks, and {world_size} saved the "
            "checkpoint: two checkpoints are mixed"
        )
    return [load_pickle(files[rank], _STAND_INS) for rank in range(world_size)]


def _pieces_of_stages_1_and_2(states: list[dict[str, Any]]) -> _Pieces:
    pieces: _Pieces = {}
    for state in states:
        shares, tables = state["single_partition_of_fp32_groups"], state["param_slice_mappings"]
        for share, table in zip(shares, tables, strict=True):
            for name, place in table.items():
                pieces.setdefault(name, []).append(share.narrow(0, place.start, place.numel))
    return pieces


def _pieces_of_stage_3(
    states: list[dict[str, Any]], groups: list[dict[str, torch.Size]]
) -> _Pieces:
    pieces: _Pieces = {}
    for state in states:
        place = _Walk(state["fp32_flat_groups"])
        for name, shape in (item for group in groups for item in group.items()):
            share = math.ceil(math.prod(shape) / len(states))
            pieces.setdefault(name, []).extend(place.take(share))
    return pieces


class _Walk:
    """Takes pieces of flat tensors that continue one another."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self._tensors = [tensor.flatten() for tensor in tensors]
        self._place = (0, 0)
        """The number of the current tensor, and the position in that tensor."""

    def take(self, size: int) -> list[Tensor]:
        """Takes the next `size` values, in as many pieces as tensors hold them; fewer at the
        end."""
        taken = []
        number, start = self._place
        while size and number < len(self._tensors):
            tensor = self._tensors[number]
            here = min(size, tensor.numel() - start)
            if here:
                taken.append(tensor.narrow(0, start, here))
            size, start = size - here, start + here
            if start == tensor.numel():
                number, start = number + 1, 0
        self._place = (number, start)
        return taken

    def take_rounded(self, weight: Tensor) -> list[Tensor]:
        """Takes the next values if they equal `weight` once rounded to its dtype; else takes
        nothing."""
        before = self._place
        taken = self.take(weight.numel())
        rounded = torch.cat([piece.to(weight.dtype) for piece in taken]) if taken else None
        if rounded is None or not torch.equal(rounded, weight.flatten()):
            self._place = before
            return []
        return taken


def _pieces_without_zero(state: dict[str, Any]) -> _Pieces:
    """Gives the fp32 weights of a run without ZeRO. In a run in 16 bits the fp32 weights have no
    names, but each parameter group holds them in the model's order. The named 16-bit weights are
    their rounded values, so a weight is found by comparing it with the next fp32 values of each
    group."""
    # A tied matrix has two names, and one place in the file.
    named: dict[int, tuple[str, Tensor]] = {}
    for name, weight in state["module"].items():
        named.setdefault(weight.data_ptr(), (name, weight))
    optimizer = state["optimizer"] or {}
    masters = optimizer.get("fp32_groups") or optimizer.get("fp32_groups_flat")
    if masters is None:
        return {name: [weight.flatten()] for name, weight in named.values()}
    groups = [_Walk(group if isinstance(group, list) else [group]) for group in masters]
    pieces: _Pieces = {}
    for name, weight in named.values():
        found = (taken for group in groups if (taken := group.take_rounded(weight)))
        pieces[name] = next(found, [])
        if not pieces[name]:
            raise ValueError(f"no fp32 weights agree with {name}")
    return pieces
