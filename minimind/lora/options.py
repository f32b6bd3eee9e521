"""Defines the options that say which linears get an adapter of which rank, for every stage that can
train adapters."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from minimind.config.model import ModelConfig
from minimind.config.recipe import Recipe, check_one_of, check_patterns, option, option_table
from minimind.errors import ConfigError
from minimind.model.state_dict import linear_parts

RANK, ALPHA = 16, 32.0
"""The default rank, and the same alpha for every rank: with updates scaled by alpha/r the best
learning rate hardly depends on the rank (Schulman et al., "LoRA Without Regret", 2025)."""
PRESETS = ("all", "original", "none")
EVERY = "_proj$"
NAMED = {"attention": "self_attn", "default": EVERY}
"""Names that stand for a pattern; other names, such as `mlp`, are patterns themselves."""


@dataclass(frozen=True, slots=True)
class AdapterRanks:
    """Holds the rank and alpha of each linear that gets an adapter, by its Hugging Face name."""

    ranks: dict[str, int]
    alphas: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class AdapterOptions(Recipe):
    """Defines the options of training adapters beside a frozen model."""

    lora_preset: str = option(
        "all",
        f"all: every linear of attention and feed-forward, rank {RANK}, alpha {ALPHA:.0f}; "
        f"original: the square ones, rank {RANK}, scale 1; none: the whole model is trained",
    )
    lora_ranks: dict[str, int] = option_table(
        "rank by a part of the model, in place of the preset's: attention, mlp, default (what no "
        "other names), or a pattern of names: q_proj, qkv_proj for all three, layers.0.; the last "
        "match counts, 0 means none"
    )
    lora_alphas: dict[str, float] = option_table("alpha by a part of the model or a pattern")
    lora_plot: bool = option(False, "draw |B·A| of every adapter at the end: adapter.png")

    @property
    def has_adapters(self) -> bool:
        """Tells whether adapters are trained instead of the whole model."""
        return self.lora_preset != "none"

    def check(self) -> None:
        super().check()
        check_one_of("lora_preset", self.lora_preset, PRESETS)
        given = [name for name in ("lora_ranks", "lora_alphas", "lora_plot") if getattr(self, name)]
        if given and not self.has_adapters:
            raise ConfigError(
                f"{given[0]} is of adapters, and lora_preset none trains the whole model: give "
                "--set lora_preset=all too"
            )
        if self.lora_ranks and self.lora_preset != PRESETS[0]:
            raise ConfigError(
                f"lora_preset {self.lora_preset} and lora_ranks contradict: give one of them"
            )
        for name, table in (("lora_ranks", self.lora_ranks), ("lora_alphas", self.lora_alphas)):
            check_patterns(name, table)
            if bad := [value for value in table.values() if not 0 <= value < math.inf]:
                raise ConfigError(f"{name} holds {bad[0]}; it must be at least 0")
        if idle := [name for name, alpha in self.lora_alphas.items() if not alpha]:
            raise ConfigError(
                f"lora_alphas holds 0 at {idle[0]}: times 0 such an adapter never acts, and never "
                "learns; give it an alpha, or lora_ranks 0 there to have none"
            )

    def choose_ranks(self, config: ModelConfig) -> AdapterRanks:
        """Chooses the linears that get an adapter, with rank and alpha. Raises ConfigError for a
        pattern that matches no linear, and where no linear is chosen."""
        rank_patterns = _default_first(self.lora_ranks) or {EVERY: RANK}
        alpha_patterns = _default_first(self.lora_alphas)
        linears = [(part, name) for name, parts in linear_parts(config).items() for part in parts]
        is_original = self.lora_preset == "original"
        ranks, alphas, matched = {}, {}, {"default"}
        for part, inside in linears:
            of_rank = [p for p in rank_patterns if _matches(p, part.name, inside)]
            of_alpha = [p for p in alpha_patterns if _matches(p, part.name, inside)]
            matched.update(of_rank, of_alpha)
            rank = rank_patterns[of_rank[-1]] if of_rank else 0
            if rank and (part.num_rows == part.num_columns or not is_original):
                usual = float(rank) if is_original else ALPHA
                ranks[part.name] = rank
                alphas[part.name] = alpha_patterns[of_alpha[-1]] if of_alpha else usual
        unmatched = sorted({*rank_patterns, *alpha_patterns} - matched)
        if ranks and not unmatched:
            return AdapterRanks(ranks, alphas)
        if not unmatched and not any(rank_patterns.values()):
            raise ConfigError(
                "no linear gets an adapter: every rank in lora_ranks is 0. Give one above 0, or "
                "--set lora_preset=none to train the whole model"
            )
        what = f"no linear's name matches {', '.join(unmatched)}"
        first = ", ".join(part.name for part, _ in linears if ".layers.0." in part.name)
        raise ConfigError(
            f"{what if unmatched else 'no linear gets an adapter'}; there is attention, mlp, "
            f"default, or a pattern of the names: {first}, and so on"
        )

    def remarks(self, config: ModelConfig) -> list[str]:
        if not self.has_adapters:
            return super().remarks(config)
        ranks = self.choose_ranks(config).ranks
        parts = (part for parts in linear_parts(config).values() for part in parts)
        sides = {part.name: min(part.num_rows, part.num_columns) for part in parts}
        above = [name for name, rank in ranks.items() if rank > sides[name]]
        if not above:
            return []
        first = above[0]
        return [
            f"{len(above)} of {len(ranks)} have a rank above their matrix's smaller side, as "
            f"{ranks[first]} of {first} above {sides[first]}: a product of them has no higher rank "
            "than that, and more weights than the matrix itself"
        ]

    def count_weights(self, config: ModelConfig) -> tuple[int, int]:
        if not self.has_adapters:
            return super().count_weights(config)
        ranks = self.choose_ranks(config).ranks
        parts = (part for parts in linear_parts(config).values() for part in parts)
        trained = sum(ranks.get(p.name, 0) * (p.num_rows + p.num_columns) for p in parts)
        return trained, config.num_parameters


ValueT = TypeVar("ValueT")


def _default_first(table: Mapping[str, ValueT]) -> dict[str, ValueT]:
    """Moves "default" to the front, so that every other pattern overrides it."""
    return {name: table[name] for name in sorted(table, key=lambda name: name != "default")}


def _matches(pattern: str, name: str, inside: str) -> bool:
    """Tells whether a pattern matches a linear: anywhere in its name on disk, or whole words at the
    end of its tensor's name in the model, so that `v_proj` does not match `qkv_proj`."""
    pattern = NAMED.get(pattern, pattern)
    inside = inside.removesuffix(".weight")
    return bool(re.search(pattern, name) or re.fullmatch(rf"(.*\.)?({pattern})", inside))
