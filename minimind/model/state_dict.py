"""Converts tensor names, and reads and writes Hugging Face folders without `transformers`.

In the model, q/k/v and gate/up are each one fused matrix, the experts' matrices are stacked, and
shared experts lie side by side. On disk every matrix is separate and has Hugging Face's name.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minimind.config.json_file import check_regular, load_json
from minimind.config.model import ModelConfig
from minimind.errors import CheckpointError
from minimind.model.hf_config import CONFIG_FILE, load_hf_config, to_hf_config
from minimind.runtime.digests import hash_files

WEIGHTS_FILE, _INDEX = "model.safetensors", ".index.json"
INDEX_FILE = WEIGHTS_FILE + _INDEX


@dataclass(frozen=True, slots=True)
class _Entry:
    """Describes one tensor of the model, and the tensors on disk that it is made of."""

    inside: str
    shape: tuple[int, ...]
    outside: tuple[tuple[str, int], ...]
    """(name on disk, its number of rows, or of columns where `dim` is 1). A stack of matrices
    counts as one matrix with all their rows."""
    dim: int = 0

    @property
    def columns(self) -> int | None:
        """Gives the number of columns; None for a vector."""
        return self.shape[-1] if len(self.shape) > 1 else None

    @property
    def matrix(self) -> tuple[int, ...]:
        return self.shape if self.columns is None else (-1, self.columns)

    def outside_shape(self, size: int) -> tuple[int, ...]:
        if self.columns is None:
            return (size,)
        return (size, self.columns) if self.dim == 0 else (self.shape[0], size)


def _layout(config: ModelConfig) -> Iterator[_Entry]:
    hidden, size = config.hidden_size, config.head_dim
    q, kv = config.num_attention_heads * size, config.num_key_value_heads * size

    def entry(inside: str, outside: str, *shape: int) -> _Entry:
        return _Entry(inside, shape, ((outside, shape[0]),))

    yield entry("embed_tokens.weight", "model.embed_tokens.weight", config.vocab_size, hidden)
    for i in range(config.num_hidden_layers):
        inside, outside = f"layers.{i}.", f"model.layers.{i}."
        attention = outside + "self_attn."
        yield _Entry(
            inside + "self_attn.qkv_proj.weight",
            (q + 2 * kv, hidden),
            tuple((f"{attention}{x}_proj.weight", n) for x, n in (("q", q), ("k", kv), ("v", kv))),
        )
        o_proj = "self_attn.o_proj.weight"
        yield entry(inside + o_proj, outside + o_proj, hidden, q)
        if config.use_qk_norm:
            for x in ("q_norm", "k_norm"):
                yield entry(f"{inside}self_attn.{x}", f"{attention}{x}.weight", size)
        if config.has_experts(i):
            yield from _expert_layout(config, inside + "mlp.", outside + "mlp.")
        else:
            yield from _swiglu_layout(
                hidden, config.intermediate_size, inside + "mlp.", [outside + "mlp."]
            )
        for norm in ("input_layernorm.weight", "post_attention_layernorm.weight"):
            yield entry(inside + norm, outside + norm, hidden)
    yield entry("norm.weight", "model.norm.weight", hidden)
    if not config.tie_word_embeddings:
        yield entry("lm_head.weight", "lm_head.weight", config.vocab_size, hidden)


def _swiglu_layout(hidden: int, ffn: int, inside: str, outside: Sequence[str]) -> Iterator[_Entry]:
    """Gives the entries of one feed-forward layer in the model. On disk it is one or several layers
    of size `ffn`, whose outputs are added."""
    width = ffn * len(outside)
    halves = [(f"{name}{half}_proj.weight", ffn) for half in ("gate", "up") for name in outside]
    yield _Entry(inside + "gate_up_proj.weight", (2 * width, hidden), tuple(halves))
    downs = [name + "down_proj.weight" for name in outside]
    side_by_side = len(outside) > 1
    sizes = tuple((name, ffn if side_by_side else hidden) for name in downs)
    yield _Entry(inside + "down_proj.weight", (hidden, width), sizes, dim=int(side_by_side))


def _expert_layout(config: ModelConfig, inside: str, outside: str) -> Iterator[_Entry]:
    hidden, ffn, num_experts = config.hidden_size, config.moe_intermediate_size, config.num_experts
    experts = [f"{outside}experts.{e}." for e in range(num_experts)]
    router = ((outside + "gate.weight", num_experts),)
    yield _Entry(inside + "gate.weight", (num_experts, hidden), router)
    halves = [(f"{name}{half}_proj.weight", ffn) for name in experts for half in ("gate", "up")]
    yield _Entry(inside + "gate_up_proj", (num_experts, 2 * ffn, hidden), tuple(halves))
    downs = tuple((name + "down_proj.weight", hidden) for name in experts)
    yield _Entry(inside + "down_proj", (num_experts, hidden, ffn), downs)
    if config.n_shared_experts:
        shared = [f"{outside}shared_experts.{s}." for s in range(config.n_shared_experts)]
        yield from _swiglu_layout(hidden, ffn, inside + "shared_experts.", shared)


@dataclass(frozen=True, slots=True)
class LinearPart:
    """Describes which rows and columns of a model's tensor are one linear on disk. A stack of
    matrices counts as one matrix with all their rows."""

    name: str
    """The linear's name on Hugging Face, without `.weight`."""
    rows: slice
    columns: slice

    @property
    def num_rows(self) -> int:
        return self.rows.stop - self.rows.start

    @property
    def num_columns(self) -> int:
        return self.columns.stop - self.columns.start


def linear_parts(config: ModelConfig) -> dict[str, list[LinearPart]]:
    """Gives, for each matrix (or stack of matrices) of the blocks by its name in the model, the
    linears that it is on disk."""
    tensors: dict[str, list[LinearPart]] = {}
    for entry in _layout(config):
        if entry.columns is None or not entry.inside.startswith("layers."):
            continue
        parts = tensors.setdefault(entry.inside, [])
        end = 0
        for name, size in entry.outside:
            here = slice(end, end + size)
            is_rows = (here, slice(0, entry.columns))
            place = is_rows if entry.dim == 0 else (slice(0, entry.shape[0]), here)
            parts.append(LinearPart(name.removesuffix(".weight"), *place))
            end = here.stop
    return tensors


def inside_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Gives the shape of each named parameter of the model."""
    return {entry.inside: entry.shape for entry in _layout(config)}


def outside_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Gives the shape of each tensor on disk, by its name on Hugging Face."""
    return {
        name: entry.outside_shape(size) for entry in _layout(config) for name, size in entry.outside
    }


def split_fused(config: ModelConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gives the model's named parameters under Hugging Face's names. The parts of a fused tensor
    are views of it."""
    return {name: part() for name, part in split_lazily(config, state.__getitem__).items()}


def split_lazily(
    config: ModelConfig, read: Callable[[str], Tensor]
) -> dict[str, Callable[[], Tensor]]:
    """Gives a function for each of Hugging Face's names: it calls `read` for the model's named
    parameter and gives a view of the part that has this name."""

    def part(entry: _Entry, start: int, size: int) -> Tensor:
        return read(entry.inside).reshape(entry.matrix).narrow(entry.dim, start, size)

    parts: dict[str, Callable[[], Tensor]] = {}
    for entry in _layout(config):
        start = 0
        for name, size in entry.outside:
            parts[name] = functools.partial(part, entry, start, size)
            start += size
    return parts


def join_fused(
    config: ModelConfig, tensors: Mapping[str, Tensor], origin: str
) -> dict[str, Tensor]:
    """Gives the model's named parameters from tensors under Hugging Face's names: the inverse of
    `split_fused`. Raises CheckpointError that names a missing, unexpected or misshapen tensor, and
    for an output head that differs from the embedding it is tied to."""
    unused = set(tensors)
    if config.tie_word_embeddings and "lm_head.weight" in unused:
        head = tensors["lm_head.weight"]
        if not torch.equal(head, tensors.get("model.embed_tokens.weight", head)):
            raise CheckpointError(
                f"{origin}: lm_head.weight differs from the embedding, but the configuration ties "
                "them: set tie_word_embeddings to false in config.json"
            )
        unused.remove("lm_head.weight")
    state: dict[str, Tensor] = {}
    for entry in _layout(config):
        for name, size in entry.outside:
            if name not in unused:
                raise CheckpointError(f"{origin}: the tensor {name} is missing")
            unused.remove(name)
            found, shape = tuple(tensors[name].shape), entry.outside_shape(size)
            if found != shape:
                raise CheckpointError(
                    f"{origin}: {name} is {list(found)}, but this model's is {list(shape)}"
                )
        state[entry.inside] = _join(entry, tensors)
    if unused:
        raise CheckpointError(f"{origin}: not of this model: {', '.join(sorted(unused)[:5])}")
    return state


def join_part(config: ModelConfig, tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Gives the named parameters of one part of the model, without its `prefix` (such as
    "layers.0."), from tensors whose shapes are `outside_shapes`. No other tensor is read."""
    entries = (entry for entry in _layout(config) if entry.inside.startswith(prefix))
    return {entry.inside.removeprefix(prefix): _join(entry, tensors) for entry in entries}


def _join(entry: _Entry, tensors: Mapping[str, Tensor]) -> Tensor:
    parts = [tensors[name] for name, _ in entry.outside]
    whole = torch.cat(parts, dim=entry.dim) if len(parts) > 1 else parts[0]
    return whole.view(entry.shape)


def save_hf_folder(
    folder: Path, config: ModelConfig, state: Mapping[str, Tensor], dtype: torch.dtype
) -> None:
    """Writes config.json and model.safetensors. `transformers` loads them where it has a class for
    the model (hf_config.py)."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in split_fused(config, state).items()
    }
    values = to_hf_config(config) | {"dtype": str(dtype).removeprefix("torch.")}
    text = json.dumps(values, indent=2) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    write_tensors(folder / WEIGHTS_FILE, tensors, {"format": "pt"})


def write_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """Writes a safetensors file with a new file's usual permissions; the library's own files are
    readable by their owner alone."""
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata=header)
    path.chmod(mode)


def load_hf_folder(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Loads the configuration and the model's named parameters, in the dtype on disk."""
    config = load_hf_config(folder)
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        with readable_safetensors(path), safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return config, join_fused(config, tensors, str(folder))


@contextlib.contextmanager
def readable_safetensors(path: Path) -> Iterator[None]:
    """Raises CheckpointError where `path` is no file, and for the library's errors in the block,
    which opens or reads it."""
    try:
        check_regular(path)
        yield
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from None


def hash_weights(folder: Path) -> str:
    """Gives a hash of the bytes of the weight files."""
    return hash_files(weight_files(folder))


def weight_files(folder: Path, names: Sequence[str] = (WEIGHTS_FILE,)) -> list[Path]:
    """Gives the files of a Hugging Face folder's weights: the first of `names` that is there, or
    the files that its index lists. Raises CheckpointError."""
    for file in (folder / name for name in names):
        index = file.with_name(file.name + _INDEX)
        if file.exists():
            return [file]
        if index.exists():
            try:
                shards = set(load_json(index)["weight_map"].values())
                return [folder / Path(shard).name for shard in sorted(shards)]
            except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
                raise CheckpointError(f"{index}: not an index of weights: {error!r}") from None
    known = ", ".join(f"{name}, {name}{_INDEX}" for name in names)
    raise CheckpointError(f"{folder}: holds no weights (none of {known})")
