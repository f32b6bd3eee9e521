"""Defines a recipe, the options of a training run. Each stage subclasses Recipe with its own
options and defaults."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, get_type_hints

from minimind.config.model import ModelConfig
from minimind.config.sizes import Sizes, default_sizes
from minimind.config.spelling import did_you_mean
from minimind.config.typed import convert
from minimind.errors import ConfigError

FLAGS = {
    "max_steps": "max_steps",
    "epochs": "epochs",
    "train_batch_size": "batch_size",
    "seq_len": "seq_len",
    "learning_rate": "learning_rate",
    "eval_every": "eval_every",
    "save_every": "save_every",
    "keep_every": "keep_every",
    "sample_every": "sample_every",
    "seed": "seed",
}
"""Options that have their own flag, with its name. --set takes these and all other options."""
SCHEDULE_NAMES = ("cosine", "wsd")
"""The names of engine/schedule.py's schedules."""


def spell_option(name: str, value: Any) -> str:
    """Writes an option with its value as the command line takes it."""
    if name in FLAGS:
        return f"--{FLAGS[name]} {value}"
    return f"--set {spell_assignment(name, value)}"


def option(default: Any, help: str) -> Any:
    """Makes a dataclass field with a help text for --help."""
    return field(default=default, metadata={"help": help})


def option_table(help: str, default: Mapping[str, Any] | None = None) -> Any:
    """Makes a dataclass field that is a dictionary, empty by default."""
    return field(default_factory=lambda: dict(default or {}), metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Defines the options of every stage. Where one is None, the size table or the DeepSpeed JSON
    decides."""

    learning_rates: ClassVar[Mapping[str, float]] = {"": 5e-4}
    """The default peak learning rate by preset; "" is for all others."""

    learning_rate: float | None = option(None, "peak learning rate (default: by stage and model)")
    min_lr_ratio: float = option(0.1, "the last learning rate as a share of the peak")
    warmup_steps: int = option(0, "optimizer steps of linear warm-up")
    schedule: str = option(
        "cosine", "how the learning rate falls: cosine, or wsd (steady, then a linear fall)"
    )
    epochs: float = option(1.0, "passes over the data")
    max_steps: int | None = option(None, "stop after so many optimizer steps (default: by epochs)")
    seq_len: int | None = option(None, "tokens of a packed row (default: by model)")
    train_batch_size: int | None = option(
        None,
        "rows of an optimizer step, over all GPUs; the original's flag of this name is per GPU "
        "(default: the DeepSpeed JSON's, or by model)",
    )
    micro_batch_size: int | None = option(
        None, "rows of one forward on one rank (default: likewise)"
    )
    optimizer: str = option(
        "AdamW",
        "AdamW, or Muon for matrices and AdamW for the rest; where the DeepSpeed JSON says auto",
    )
    weight_decay: float = option(0.01, "decoupled weight decay")
    betas: tuple[float, float] = option((0.9, 0.999), "AdamW's betas")
    adam_eps: float = option(1e-8, "AdamW's epsilon")
    gradient_clipping: float = option(1.0, "largest gradient norm (0: no clipping)")
    clip_value: float = option(
        0.0, "clip each gradient element to this absolute value, before the norm is taken (0: off)"
    )
    lr_factors: dict[str, float] = option_table("learning rate factor by a pattern of names")
    weight_decay_factors: dict[str, float] = option_table("weight decay factor by pattern")
    scale_lr_with_batch: int = option(
        0, "rows a step the learning rate is meant for: it scales with the square root (0: off)"
    )
    activation_checkpointing: bool = option(False, "recompute each block in the backward")
    cuda_graph: bool = option(
        False, "replay each micro-batch as a CUDA graph: for small ones on many GPUs"
    )
    seed: int = option(42, "seed of weights, data order and dropout")
    deterministic: bool = option(
        False, "the same bits from every run on a GPU too (a slower backward of attention)"
    )
    skip_steps: int = option(
        0,
        "steps of a run that may be skipped because their loss or gradient is not finite, with "
        "their rows written to skipped_steps.jsonl (0: the first one ends the run)",
    )
    spike_deviations: float = option(
        0.0,
        "where a step's loss is above the mean of the 50 before it by more than this many standard "
        "deviations, go back to a checkpoint from before that step and the one before it, and "
        "leave both out (0: never)",
    )
    eval_every: int = option(100, "optimizer steps between validations (0: never)")
    eval_rows: int = option(64, "validation rows at most (0: all)")
    save_every: int = option(200, "optimizer steps between checkpoints (0: only the last)")
    keep_checkpoints: int = option(2, "checkpoints kept, the best not counted")
    keep_every: int = option(
        0, "keep besides each checkpoint whose step is a multiple of this (0: none)"
    )
    sample_every: int = option(0, "optimizer steps between sampled texts (0: never)")
    sample_prompts: tuple[str, ...] = option((), "what the sampled texts begin with")
    log_every: int = option(10, "optimizer steps between console lines where there is no terminal")
    rank_timeout_s: float = option(
        180.0,
        "a run of several ranks ends, and names the lost rank, after so many seconds without a "
        "sign of life from it, or without progress of any rank (then at least ten times the "
        "longest pause so far)",
    )
    new_tokenizer: bool = option(
        False,
        "the ids of --tokenizer may mean other tokens than the checkpoint's: they are learnt anew",
    )

    @property
    def usual_rates(self) -> Mapping[str, float]:
        """Gives the default peak learning rates by preset, as the other options adjust them."""
        return self.learning_rates

    @classmethod
    def sizes(cls, device_kind: str, preset: str) -> Sizes:
        """Gives the default sizes for a kind of device and a preset."""
        return default_sizes(device_kind, preset)

    @property
    def row_len(self) -> int:
        """Gives the number of tokens in a row of data, once seq_len is resolved."""
        assert self.seq_len is not None
        return self.seq_len

    @property
    def format_options(self) -> dict[str, Any]:
        """Gives the options of the data format that differ from their defaults."""
        return {}

    @property
    def rate_factors(self) -> dict[str, float]:
        """Gives learning-rate factors by pattern of parameter names, the stage's own before the
        user's."""
        return self.lr_factors

    def count_weights(self, config: ModelConfig) -> tuple[int, int]:
        """Counts the policy's parameters as (trained, frozen)."""
        return config.num_parameters, 0

    def remarks(self, config: ModelConfig) -> list[str]:
        """Describes options that are set but have no effect with this model."""
        return []

    @property
    def updates_per_step(self) -> int:
        """Gives the most updates that one step takes."""
        return 1

    def check_at_least(self, **least: float) -> None:
        """Raises ConfigError for an option, given by name with its least value, that is below that
        or not finite. An option that is None passes."""
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= bound):
                raise ConfigError(f"{name} is {value}; it must be at least {bound}")

    def check_above_0(self, *names: str) -> None:
        """Raises ConfigError for an option that is not above 0 or not finite. An option that is
        None passes."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} is {value}; it must be above 0")

    def check_from_0_to_1(self, *names: str) -> None:
        """Raises ConfigError for an option that is not from 0 to 1."""
        for name in names:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be from 0 to 1")

    def check(self) -> None:
        """Raises ConfigError for a value that is not allowed."""
        self.check_at_least(
            warmup_steps=0,
            max_steps=1,
            seq_len=2,
            train_batch_size=1,
            micro_batch_size=1,
            weight_decay=0.0,
            gradient_clipping=0.0,
            clip_value=0.0,
            scale_lr_with_batch=0,
            skip_steps=0,
            spike_deviations=0.0,
            eval_every=0,
            eval_rows=0,
            save_every=0,
            keep_checkpoints=1,
            keep_every=0,
            sample_every=0,
            log_every=1,
            rank_timeout_s=1.0,
        )
        self.check_above_0("learning_rate", "epochs", "adam_eps")
        self.check_from_0_to_1("min_lr_ratio")
        check_one_of("schedule", self.schedule, SCHEDULE_NAMES)
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed is {self.seed}; it must be from 0 to 2^63 - 1")
        for name in ("lr_factors", "weight_decay_factors"):
            check_patterns(name, getattr(self, name))
            if bad := [v for v in getattr(self, name).values() if not 0 <= v < math.inf]:
                raise ConfigError(f"{name} holds {bad[0]}; a factor must be at least 0")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas is {self.betas}; it must be two numbers from 0 to below 1")


def check_one_of(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises ConfigError where the value of option `name` is none of `choices`."""
    if value not in choices:
        raise ConfigError(
            f"{name} is {value!r}{did_you_mean(value, choices)}; it must be one of "
            f"{', '.join(choices)}"
        )


def check_patterns(name: str, patterns: Iterable[str]) -> None:
    """Raises ConfigError for a pattern that is not a regular expression; `name` is the option's."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"{name}: the pattern {pattern!r}: {error}") from None


def replace_fields(
    instance: Any, values: dict[str, Any], origin: str, what: str = "recipe option"
) -> Any:
    """Gives a copy of a dataclass with `values`, whose names and types it checks. Raises
    ConfigError."""
    hints = get_type_hints(type(instance))
    names = [f.name for f in dataclasses.fields(instance)]
    for name, value in values.items():
        if name not in names:
            guess = did_you_mean(name, names)
            raise ConfigError(f"{origin}: no such {what}: {name}{guess}; known: {', '.join(names)}")
        values = values | {name: convert(value, hints[name], f"{origin}: {name}")}
    return dataclasses.replace(instance, **values)


def parse_assignments(items: list[str]) -> dict[str, Any]:
    """Reads KEY=VALUE from --set: VALUE is read as JSON if it is valid JSON, else as text. Raises
    ConfigError."""
    values: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {item}: must be KEY=VALUE")
        try:
            values[key.strip()] = json.loads(text)
        except ValueError:
            values[key.strip()] = text
    return values


def spell_assignment(key: str, value: Any) -> str:
    """Writes KEY=VALUE such that `parse_assignments` reads the same value."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except ValueError:
            return f"{key}={value}"
    return f"{key}={json.dumps(value, ensure_ascii=False)}"
