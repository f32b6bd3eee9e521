"""Runs in the process of a row of bench.inference: our engine, `generate` of `transformers`,
or llama.cpp."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from bench.inference import llama_cpp_row
from bench.workers import peak_resident, reset_peak_resident
from minimind.inference.batch_engine import BatchEngine
from minimind.inference.grammar_texts import AnswerForm, json_rules
from minimind.inference.load import load_model
from minimind.inference.request import GenerationRequest
from minimind.inference.sampling import SamplingParams
from minimind.runtime.memory import PeakMemory
from minimind.samples.text import load_sample_tokenizer

Prompts = Sequence[Sequence[int]]
ENDLESS = {
    "type": "array",
    "minItems": 10**6,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "kind": {"enum": ["cat", "dog", "鸭子"]},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 6}, "maxItems": 3},
            "note": {"anyOf": [{"type": "string", "maxLength": 20}, {"type": "null"}]},
        },
        "required": ["name", "age", "kind", "tags", "note"],
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceSpec:
    """Describes one row; weights and sizes are the same for all rows."""

    name: str
    folder: Path
    dtype: torch.dtype
    device: torch.device
    batch: int
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationTime:
    """Holds the times of one batch of prompts continued greedily."""

    first_token_s: float
    """The mean over the prompts, which all came at once."""
    decode_tokens_per_s: float
    """The speed between the moment when every prompt has its first token and the moment when one
    prompt has its last."""
    ids: list[list[int]]


class Row(Protocol):
    def generate(self, prompts: Prompts) -> tuple[list[list[int]], list[list[float]]]:
        """Gives the new tokens of each prompt, and when each came (time.perf_counter)."""
        ...


class EngineRow:
    def __init__(self, spec: InferenceSpec) -> None:
        model, tokenizer = load_model(spec.folder, dtype=spec.dtype, device=spec.device)
        tokens = spec.batch * (spec.prompt_tokens + spec.new_tokens)
        self._engine = BatchEngine(model, tokenizer, max_batch=spec.batch, max_tokens=tokens)
        self._params = SamplingParams(max_new_tokens=spec.new_tokens)

    def generate(self, prompts: Prompts) -> tuple[list[list[int]], list[list[float]]]:
        engine = self._engine
        requests = [GenerationRequest(prompt_ids=p, params=self._params) for p in prompts]
        index = {engine.submit(request): i for i, request in enumerate(requests)}
        ids: list[list[int]] = [[] for _ in prompts]
        times: list[list[float]] = [[] for _ in prompts]
        while engine.has_work:
            deltas = engine.step()
            now = time.perf_counter()
            for delta in deltas:
                ids[index[delta.request_id]] += delta.ids
                times[index[delta.request_id]] += [now] * len(delta.ids)
        return ids, times


class HeldRow(EngineRow):
    """Holds every sequence to a JSON schema: a list that does not end before the last token."""

    def __init__(self, spec: InferenceSpec) -> None:
        super().__init__(spec)
        form = AnswerForm(content=json_rules(ENDLESS))
        grammar = self._engine.grammars.compile(form.text(load_sample_tokenizer()))
        self._params = dataclasses.replace(self._params, grammar=grammar)


class TransformersRow:
    def __init__(self, spec: InferenceSpec) -> None:
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(spec.folder, dtype=spec.dtype)
        self._model = model.to(spec.device).eval()
        self._device, self._new_tokens = spec.device, spec.new_tokens

    def generate(self, prompts: Prompts) -> tuple[list[list[int]], list[list[float]]]:
        from transformers import StoppingCriteriaList

        times: list[float] = []

        def note(input_ids: torch.Tensor, scores: Any, **more: Any) -> torch.Tensor:
            """Is called after each token; never stops."""
            if input_ids.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter())
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

        out = self._model.generate(
            torch.tensor(prompts, device=self._device),
            max_new_tokens=self._new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([note]),  # type: ignore[list-item]
        )
        return out[:, len(prompts[0]) :].tolist(), [times] * len(prompts)


ROWS: dict[str, Any] = {
    "minimind": EngineRow,
    "held": HeldRow,
    "transformers": TransformersRow,
    llama_cpp_row.NAME: llama_cpp_row.LlamaCppRow,
}
USUAL_ROWS = ("minimind", "held", "transformers")
"""The rows that need no further package."""


class ServedRow:
    """Holds the methods of a row that the parent calls."""

    def __init__(self, spec: InferenceSpec) -> None:
        self._spec = spec

    def build(self) -> dict[str, Any]:
        self._row: Row = ROWS[self._spec.name](self._spec)
        return {"threads": torch.get_num_threads()}

    def start_timing(self) -> None:
        """Ends the warm-up: collects garbage, and resets the peaks of memory."""
        gc.collect()
        reset_peak_resident()
        self._memory = PeakMemory(self._spec.device)

    def generate(self, prompts: Prompts) -> GenerationTime:
        start = time.perf_counter()
        ids, times = self._row.generate(prompts)
        if any(len(one) != self._spec.new_tokens for one in ids):
            raise RuntimeError(f"{[len(one) for one in ids]} tokens, not {self._spec.new_tokens}")
        all_started = max(one[0] for one in times)
        first_ended = min(one[-1] for one in times)
        between = sum(all_started < at <= first_ended for one in times for at in one)
        return GenerationTime(
            first_token_s=sum(one[0] - start for one in times) / len(times),
            decode_tokens_per_s=between / (first_ended - all_started),
            ids=ids,
        )

    def measure(self, prompts: Prompts) -> dict[str, Any]:
        """Gives the peaks of memory. The tensors' peak is measured in a separate generation, since
        measuring it costs time."""
        resident = peak_resident()
        if self._spec.name == llama_cpp_row.NAME:  # PyTorch does not count llama.cpp's tensors
            return {"peak_bytes": None, "peak_resident_bytes": resident}
        with self._memory.measured():
            self._row.generate(prompts)
        return {"peak_bytes": self._memory.peak_bytes, "peak_resident_bytes": resident}
