"""Defines ModelConfig, the description of every model, its presets, and how `--set` changes it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

from minimind.config.json_file import read_json_fields
from minimind.config.rope_scaling import check_rope_scaling
from minimind.config.spelling import did_you_mean
from minimind.config.typed import convert
from minimind.errors import ConfigError

_MAX_EXPERTS, _MAX_EXPERTS_PER_TOK = 256, 8
"""The limits of the routing kernel."""
MAX_LAYERS, _MAX_SIZE = 1024, 1 << 24
"""The largest number of layers (or shared experts), and the largest other size. They are far above
those of any model, so that a file with an impossible size is refused before code loops over it or
allocates it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Describes a transformer. Field names are Hugging Face's; the names of the experts' fields are
    Qwen3-MoE's or, where it has none, DeepSeek's.

    Where they are 0, `head_dim` and `intermediate_size` follow from `hidden_size`, and with experts
    `moe_intermediate_size` follows from `intermediate_size`.
    """

    model_type: Literal["llama", "qwen3"] = "qwen3"
    """llama: the 2-series; qwen3: the 3-series, with QK norm and an FFN of pi times the hidden
    size."""
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
    """True: round the normalised value to the model's dtype before multiplying by the norm's weight
    (2-series, Hugging Face). False: multiply in fp32 and round once (3-series)."""
    rope_theta: float = 1e6
    rope_scaling: dict[str, Any] | None = None
    max_position_embeddings: int = 32768
    tie_word_embeddings: bool = True
    dropout: float = 0.0
    initializer_range: float = 0.02
    num_experts: int = 0
    """The number of routed experts in a layer; 0 is a dense model."""
    num_experts_per_tok: int = 1
    moe_intermediate_size: int = 0
    norm_topk_prob: bool = True
    """Divide a token's expert weights by their sum; in the 2-series only if it has several."""
    router_aux_loss_coef: float = 5e-4
    seq_aux: bool = False
    """True: balance the experts within each document. False: over the whole micro-batch."""
    n_shared_experts: int = 0
    """The number of experts that every token goes to, besides the routed ones."""
    mlp_only_layers: tuple[int, ...] = ()
    """The layers that are dense, with `intermediate_size`, in a model with experts."""
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
        if self.num_experts and self.moe_intermediate_size == 0:
            object.__setattr__(self, "moe_intermediate_size", self.intermediate_size)
        object.__setattr__(self, "mlp_only_layers", tuple(self.mlp_only_layers))
        if self.rope_scaling is not None:
            object.__setattr__(self, "rope_scaling", check_rope_scaling(self.rope_scaling))
        self._check()

    def _check(self) -> None:
        self._check_bounds(
            vocab_size=(1, _MAX_SIZE),
            hidden_size=(1, _MAX_SIZE),
            num_hidden_layers=(1, MAX_LAYERS),
            num_attention_heads=(1, _MAX_SIZE),
            num_key_value_heads=(1, _MAX_SIZE),
            head_dim=(1, _MAX_SIZE),
            intermediate_size=(1, _MAX_SIZE),
            max_position_embeddings=(1, _MAX_SIZE),
        )
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
        self._check_experts()

    def _check_experts(self) -> None:
        only = ("moe_intermediate_size", "n_shared_experts", "mlp_only_layers")
        if self.num_experts == 0:
            needs = [name for name in only if getattr(self, name)]
            needs += ["num_experts_per_tok"] if self.num_experts_per_tok != 1 else []
            if needs:
                raise ConfigError(
                    f"{needs[0]} is {getattr(self, needs[0])}, but num_experts is 0, a dense "
                    "model: give num_experts too"
                )
            return
        if not 2 <= self.num_experts <= _MAX_EXPERTS:
            raise ConfigError(
                f"num_experts is {self.num_experts}; it must be 0 (a dense model) or from 2 to "
                f"{_MAX_EXPERTS}"
            )
        most = min(self.num_experts, _MAX_EXPERTS_PER_TOK)
        if not 1 <= self.num_experts_per_tok <= most:
            raise ConfigError(
                f"num_experts_per_tok is {self.num_experts_per_tok}; of {self.num_experts} "
                f"experts it must be from 1 to {most}"
            )
        self._check_bounds(
            moe_intermediate_size=(1, _MAX_SIZE),
            n_shared_experts=(0, MAX_LAYERS),
            router_aux_loss_coef=(0, 10**9),
        )
        layers, last = set(self.mlp_only_layers), self.num_hidden_layers - 1
        if not layers <= set(range(last + 1)) or len(layers) != len(self.mlp_only_layers):
            raise ConfigError(
                f"mlp_only_layers is {list(self.mlp_only_layers)}; it must hold numbers of layers, "
                f"each once, from 0 to {last}"
            )
        if len(layers) > last:
            raise ConfigError(
                f"mlp_only_layers names all {last + 1} layers: leave one for the experts, or set "
                "num_experts to 0"
            )

    def _check_bounds(self, **bounds: tuple[int, int]) -> None:
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise ConfigError(
                    f"{name} is {value}; it must be at least {least} and at most {most:,}"
                )

    def has_experts(self, layer: int) -> bool:
        return self.num_experts > 0 and layer not in self.mlp_only_layers

    @property
    def renormalizes_experts(self) -> bool:
        """Tells whether a token's expert weights are divided by their sum. The 2-series does not
        divide a single weight."""
        return self.norm_topk_prob and (self.num_experts_per_tok > 1 or self.model_type == "qwen3")

    @property
    def router_learns_from_aux_loss_alone(self) -> bool:
        """Tells whether the router gets gradient from the auxiliary loss only: a single expert's
        weight divided by itself is always 1."""
        return self.num_experts > 0 and self.num_experts_per_tok == 1 and self.renormalizes_experts

    @property
    def active_ffn_size(self) -> int:
        """Gives the FFN width that one token uses in a layer, summed over its experts."""
        experts = self.num_experts_per_tok + self.n_shared_experts
        return experts * self.moe_intermediate_size if self.num_experts else self.intermediate_size

    @property
    def num_parameters(self) -> int:
        """Counts the trained parameters; a tied matrix counts once."""
        return self._count_parameters(self.num_experts)

    @property
    def num_active_parameters(self) -> int:
        """Counts the parameters that one token uses: without the routed experts it does not go
        to."""
        return self._count_parameters(self.num_experts_per_tok if self.num_experts else 0)

    def _count_parameters(self, experts: int) -> int:
        """Counts the parameters, with `experts` routed experts in each layer that has any."""
        heads, hidden = self.num_attention_heads + self.num_key_value_heads, self.hidden_size
        attention = 2 * heads * self.head_dim * hidden
        attention += 2 * self.head_dim if self.use_qk_norm else 0
        dense_ffn = 3 * hidden * self.intermediate_size
        expert_ffn = 3 * hidden * self.moe_intermediate_size * (experts + self.n_shared_experts)
        expert_ffn += hidden * self.num_experts
        layers = range(self.num_hidden_layers)
        ffn = sum(expert_ffn if self.has_experts(i) else dense_ffn for i in layers)
        matrices = 1 if self.tie_word_embeddings else 2
        embedding = matrices * self.vocab_size * hidden
        return embedding + ffn + self.num_hidden_layers * (attention + 2 * hidden) + hidden

    def flops_per_token(self, seq_len: int) -> int:
        """Gives the FLOPs of forward and backward per token: 6N + 12·L·D·T (PaLM, Chowdhery et al.
        2022, appendix B), where N is the number of active parameters, L of layers, T the row length
        and D the width of all query heads together."""
        width = self.num_attention_heads * self.head_dim
        return 6 * self.num_active_parameters + 12 * self.num_hidden_layers * width * seq_len

    def to_dict(self) -> dict[str, Any]:
        """Gives the fields as values that JSON can hold."""
        return dataclasses.asdict(self) | {"mlp_only_layers": list(self.mlp_only_layers)}

    @classmethod
    def from_dict(cls, values: dict[str, Any], origin: str) -> ModelConfig:
        """Reads the fields from a dictionary. Raises ConfigError, which names `origin`, for unknown
        keys and wrong types."""
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise ConfigError(
                f"{origin}: no such model field: {', '.join(unknown)}"
                f"{did_you_mean(unknown[0], known)}; known: {', '.join(known)}"
            )
        hints = get_type_hints(cls) | {"rope_scaling": Any}  # which may be a name
        values = {n: convert(value, hints[n], f"{origin}: {n}") for n, value in values.items()}
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{origin}: {error}") from None


def default_intermediate_size(model_type: str, hidden_size: int) -> int:
    """Gives the default FFN size for hidden size h: 64·⌈⌊8h/3⌋/64⌉ in the 2-series, 64·⌈πh/64⌉ in
    the 3-series."""
    wide = 8 * hidden_size // 3 if model_type == "llama" else math.pi * hidden_size
    return 64 * math.ceil(wide / 64)


_SERIES_2: dict[str, Any] = {
    "model_type": "llama",
    "use_qk_norm": False,
    "rms_norm_eps": 1e-5,
    "norm_cast_before_weight": True,
}
_SERIES_3: dict[str, Any] = {"hidden_size": 768, "num_key_value_heads": 4}
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4},
    "minimind2-small": _SERIES_2,
    "minimind2": _SERIES_2 | {"hidden_size": 768, "num_hidden_layers": 16},
    "minimind2-moe": _SERIES_2
    | {
        "hidden_size": 640,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "router_aux_loss_coef": 0.01,
        "seq_aux": True,
    },
    "minimind3": _SERIES_3,
    "minimind3-moe": _SERIES_3 | {"num_experts": 4},
}
"""The fields in which each preset differs from ModelConfig's defaults."""
FOLLOWS_TOKENIZER = frozenset({"tiny"})
"""Presets that take the tokenizer's vocabulary size: in a model this small, unused tokens would be
a large part of the weights."""


def load_model_config(
    name: str, overrides: dict[str, Any] | None = None, *, tokenizer_vocab: int | None = None
) -> ModelConfig:
    """Loads a preset by name, or a JSON file by path, and changes it by `overrides`.

    If `overrides` changes a preset's hidden size, head size and FFN size follow unless given.
    Raises ConfigError.
    """
    overrides = dict(overrides or {})
    if name in PRESETS:
        values, origin = dict(PRESETS[name]), f"--model {name}"
        if name in FOLLOWS_TOKENIZER and tokenizer_vocab is not None:
            values["vocab_size"] = tokenizer_vocab
    elif name.endswith(".json") or Path(name).exists():
        values, origin = read_json_fields(Path(name)), name
    else:
        raise ConfigError(
            f"--model {name}: neither a preset ({', '.join(PRESETS)}) nor a JSON file of fields"
            f"{did_you_mean(name, PRESETS)}"
        )
    return ModelConfig.from_dict(values | overrides, origin)
