"""ModelConfig: one description for every model, its presets, and how `--set` changes it."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from minimind.errors import ConfigError

YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "factor": 16.0,
    "original_max_position_embeddings": 2048,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "attention_factor": 1.0,
}
"""What `--set rope_scaling=yarn` stands for: contexts to 32,768 (Peng et al. 2023)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer. Field names are Hugging Face's.

    `head_dim` and `intermediate_size` follow from `hidden_size` where they are 0.
    """

    model_type: Literal["llama", "qwen3"] = "qwen3"
    """llama: the 2-series; qwen3: the 3-series (QK norm, FFN of pi times the hidden size)."""
    vocab_size: int = 6400
    hidden_size: int = 512
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    head_dim: int = 0
    intermediate_size: int = 0
    use_qk_norm: bool = True
    rms_norm_eps: float = 1e-6
    norm_cast_before_weight: bool = False
    """Cast the normalised value down before its product with the weight (2-series, Hugging Face),
    or multiply in fp32 and cast once (3-series)."""
    rope_theta: float = 1e6
    rope_scaling: dict[str, Any] | None = None
    max_position_embeddings: int = 32768
    tie_word_embeddings: bool = True
    dropout: float = 0.0
    initializer_range: float = 0.02
    bos_token_id: int = 1
    eos_token_id: int = 2
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        if self.hidden_size > 0 and self.num_attention_heads > 0 and self.head_dim == 0:
            if self.hidden_size % self.num_attention_heads:
                raise ConfigError(
                    f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                    f"{self.num_attention_heads}: change one of them or give head_dim"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if self.intermediate_size == 0:
            size = default_intermediate_size(self.model_type, self.hidden_size)
            object.__setattr__(self, "intermediate_size", size)
        if self.rope_scaling is not None:
            object.__setattr__(self, "rope_scaling", _check_rope_scaling(self.rope_scaling))
        self._check()

    def _check(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "intermediate_size",
            "max_position_embeddings",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.model_type not in ("llama", "qwen3"):
            raise ConfigError(f"model_type is {self.model_type!r}; known: 'llama', 'qwen3'")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim {self.head_dim} is odd; RoPE rotates pairs")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}; it must be at least 0 and below 1")
        for name, least in (("rms_norm_eps", 0), ("rope_theta", 1), ("initializer_range", 0)):
            if not least < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above {least}")

    @property
    def num_parameters(self) -> int:
        """Trained numbers, the tied matrix once."""
        heads = self.num_attention_heads + self.num_key_value_heads
        attention = 2 * heads * self.head_dim * self.hidden_size
        attention += 2 * self.head_dim if self.use_qk_norm else 0
        ffn = 3 * self.hidden_size * self.intermediate_size
        block = attention + ffn + 2 * self.hidden_size
        matrices = 1 if self.tie_word_embeddings else 2
        embedding = matrices * self.vocab_size * self.hidden_size
        return embedding + self.num_hidden_layers * block + self.hidden_size

    def flops_per_token(self, seq_len: int) -> int:
        """Forward and backward: 6N + 12·L·D·T (PaLM, Chowdhery et al. 2022, appendix B), N with
        the tied matrix once, D the width of all query heads."""
        width = self.num_attention_heads * self.head_dim
        return 6 * self.num_parameters + 12 * self.num_hidden_layers * width * seq_len

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any], origin: str) -> ModelConfig:
        """Unknown keys and wrong types raise ConfigError naming `origin`."""
        known = {f.name: f for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - set(known)):
            raise ConfigError(
                f"{origin}: no such model field: {', '.join(unknown)}; known: {', '.join(known)}"
            )
        for name, value in values.items():
            default = known[name].default
            if name == "rope_scaling" or (value is None and default is None):
                continue
            wanted = (int, float) if isinstance(default, float) else type(default)
            if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
                kind = type(default).__name__
                raise ConfigError(f"{origin}: {name} is {value!r}; it must be a {kind}")
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{origin}: {error}") from None


def default_intermediate_size(model_type: str, hidden_size: int) -> int:
    """64·⌈⌊8h/3⌋/64⌉ in the 2-series, 64·⌈πh/64⌉ in the 3-series."""
    wide = 8 * hidden_size // 3 if model_type == "llama" else math.pi * hidden_size
    return 64 * math.ceil(wide / 64)


def _check_rope_scaling(value: Any) -> dict[str, Any]:
    if value == "yarn":
        return dict(YARN)
    if not isinstance(value, dict) or value.get("rope_type") != "yarn" or set(value) - set(YARN):
        raise ConfigError(
            f"rope_scaling is {value!r}; it must be 'yarn' or an object with rope_type 'yarn' and "
            f"some of {', '.join(YARN)}"
        )
    for name, number in value.items():
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        if name != "rope_type" and not (is_number and 0 < number < math.inf):
            raise ConfigError(f"rope_scaling: {name} is {number!r}; it must be a number above 0")
    return YARN | value


_SERIES_2: dict[str, Any] = {
    "model_type": "llama",
    "use_qk_norm": False,
    "rms_norm_eps": 1e-5,
    "norm_cast_before_weight": True,
}
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4},
    "minimind2-small": _SERIES_2,
    "minimind2": _SERIES_2 | {"hidden_size": 768, "num_hidden_layers": 16},
    "minimind3": {"hidden_size": 768, "num_key_value_heads": 4},
}
"""What each preset changes from ModelConfig's defaults."""
FOLLOWS_TOKENIZER = frozenset({"tiny"})
"""Presets whose vocabulary is the tokenizer's: at their size an unused half would cost most."""


def load_model_config(
    name: str, overrides: dict[str, Any] | None = None, *, tokenizer_vocab: int | None = None
) -> ModelConfig:
    """A preset's name or the path of a JSON file, changed by `overrides`.

    Where `overrides` changes the hidden size of a preset, head size and FFN size follow unless
    given. Raises ConfigError.
    """
    overrides = dict(overrides or {})
    if name in PRESETS:
        values, origin = dict(PRESETS[name]), f"--model {name}"
        if name in FOLLOWS_TOKENIZER and tokenizer_vocab is not None:
            values["vocab_size"] = tokenizer_vocab
    elif name.endswith(".json") or Path(name).exists():
        values, origin = _read_json(Path(name)), name
    else:
        raise ConfigError(
            f"--model {name}: neither a preset ({', '.join(PRESETS)}) nor a JSON file of fields"
        )
    return ModelConfig.from_dict(values | overrides, origin)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold one JSON object, not a {type(values).__name__}")
    return values
