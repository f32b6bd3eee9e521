"""Holds what runs are resolved from in tests: devices, a loader, a stage."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar, cast

import torch

from minimind.data.loader import PackedLoader
from minimind.data.tokenizer import Tokenizer
from minimind.run.resolve import ResolvedRun
from minimind.runtime.devices import Device
from minimind.samples.text import load_sample_tokenizer
from minimind.stages import STAGES
from minimind.stages.pretrain import Pretrain

CPU = Device(
    torch.device("cpu"), "some CPU", False, "fp32", "this CPU has no bf16 instructions", None
)
GPU = Device(torch.device("cuda", 0), "some GPU", True, "bf16", "", 1e15)

Resolve = Callable[..., ResolvedRun]


class AfterPretrain(Pretrain):
    """A stage that starts from trained weights."""

    name: ClassVar[str] = "after"
    needs_checkpoint: ClassVar[bool] = True


@dataclass
class Loader:
    """As much of a loader as describe_run looks at."""

    num_rows: int = 40
    rows = SimpleNamespace(
        plan=SimpleNamespace(num_tokens=10_000, padding_share=0.0123, num_truncated=0)
    )

    def steps(self, epochs: float) -> int:
        return math.ceil(self.num_rows * epochs / 16)


LOADER = cast(PackedLoader, Loader())
_RATES = STAGES["pretrain"].recipe_type.learning_rates
USUAL_RATE, TINY_RATE = _RATES[""], _RATES["tiny"]
SIZE_FLAGS = ("--seq_len", "256", "--set", "train_batch_size=16", "--set", "micro_batch_size=8")


def small_tokenizer() -> Tokenizer:
    """Another tokenizer: the sample one without its last merges."""
    whole = load_sample_tokenizer()
    spec = json.loads(json.dumps(whole._spec))
    vocab, merges = spec["model"]["vocab"], spec["model"]["merges"]
    for _ in range(200):
        pair = merges.pop()
        del vocab["".join(pair if isinstance(pair, list) else pair.split(" "))]
    return Tokenizer(spec, whole._config, "smaller")
