"""Stands in for CUDA graphs, and holds requests of all settings for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from grammars import compiled
from small_engines import request, tokenizer
from small_models import random_documents, small_config
from torch import Tensor

from minimind.inference import batch_settings, decode_graphs, device_sampler, model_runner, sampler
from minimind.inference.batch_engine import BatchEngine
from minimind.inference.decode_graphs import DecodeGraphs
from minimind.inference.grammar_texts import AnswerForm, regex_rules
from minimind.inference.pending_tokens import PendingTokens
from minimind.inference.request import Completion, GenerationRequest


class Replayed:
    """Stands in for CUDA graphs, which it counts: what would be replayed runs as it is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.captured = self.replayed = 0
        monkeypatch.setattr(model_runner, "computes_apart", lambda device: True)
        monkeypatch.setattr(DecodeGraphs, "_capture", self._capture)

    def _capture(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.captured += 1

        def replay() -> Tensor:
            self.replayed += 1
            return step()

        return replay


SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_p": 0.8, "logprobs": 3},
    {"temperature": 1.4, "top_k": 11, "top_p": 0.9},
    {"temperature": 1.2, "min_p": 0.05, "frequency_penalty": 0.5},
    {"repetition_penalty": 1.3, "presence_penalty": 0.5, "logprobs": 0},
    {"temperature": 2.0, "logprobs": 5, "tempered_logprobs": True},
]

HELD = compiled(
    AnswerForm(content=regex_rules("[!-~]{0,9}(#[!-~]{12})?")), small_config().vocab_size
)
FORMS: list[dict[str, Any]] = [
    {"grammar": HELD, "temperature": 1.0, "top_p": 0.9},
    {"grammar": HELD, "logit_bias": ((40, 3.0),), "logprobs": 2, "frequency_penalty": 0.5},
    {"logit_bias": ((50, 2.0), (60, -100.0)), "temperature": 1.0},
]
ALL_SETTINGS = [*SETTINGS, *FORMS]


def mixed_requests() -> list[GenerationRequest]:
    """Of all lengths and settings, some of which end at a token that nobody foresees."""
    prompts = random_documents([5, 40, 1, 17, 33, 60, 2] * 3)
    news, kinds = (30, 9, 1, 30, 3, 0, 25), len(ALL_SETTINGS)
    return [
        request(
            p,
            new=news[i % 7] + i // 7,
            stop_ids=(tokenizer().eos_id, i, 5 * i, 90 - i),
            seed=i,
            **ALL_SETTINGS[i % kinds],
        )
        for i, p in enumerate(prompts)
    ]


def completions(engine: BatchEngine, requests: Sequence[GenerationRequest]) -> list[Completion]:
    return [dataclasses.replace(one, request_id=0) for one in engine.generate(requests)]


def check_same(found: Sequence[Completion], expected: Sequence[Completion]) -> None:
    """But for rounding and what was found in the cache."""
    for one, other in zip(found, expected, strict=True):
        assert (one.ids, one.text, one.finish_reason) == (
            other.ids,
            other.text,
            other.finish_reason,
        )
        for entry, same in zip(one.logprobs, other.logprobs, strict=True):
            assert entry.logprob == pytest.approx(same.logprob, abs=1e-4)
            assert [i for i, _ in entry.top] == [i for i, _ in same.top]


def note_calls(
    monkeypatch: pytest.MonkeyPatch, engine: BatchEngine, *more: tuple[Any, str]
) -> list[str]:
    """Gives a list that fills with what the host does from now on, by the name of the function;
    `more`: owners and names of other functions to note."""
    events: list[str] = []
    modules = (decode_graphs, device_sampler, sampler, batch_settings, model_runner)
    host = [(PendingTokens, "read"), (engine._runner, "launch")]

    def note(owner: Any, name: str) -> None:
        plain = getattr(owner, name)

        def noted(*arguments: Any, **options: Any) -> Any:
            events.append(name)
            return plain(*arguments, **options)

        monkeypatch.setattr(owner, name, noted)

    for owner, name in (*((module, "send") for module in modules), *host, *more):
        note(owner, name)
    return events
