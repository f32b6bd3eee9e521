"""Texts sampled while a run trains: what a reader watches it learn by."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from minimind.data.jsonl import read_rows
from minimind.data.sample_text import SAMPLE_PROMPTS
from minimind.data.tokenizer import Tokenizer
from minimind.inference.generate import generate_text
from minimind.inference.sampling import SamplingParams
from minimind.model.transformer import Transformer
from minimind.types import Row

_DOCUMENTS = 4
_CHARACTERS = 24


def choose_prompts(given: Sequence[str], data: Sequence[tuple[str, float | None]]) -> list[str]:
    """The ones given, else how the first documents of `data` (text rows, with weights) begin, else
    the sample data's own."""
    if given or not data:
        return list(given) or [prompt.prompt for prompt in SAMPLE_PROMPTS]
    rows = (row for row, _ in read_rows(data[0][0]) if isinstance(row, Row))
    texts = (str(row.data.get("text", "")) for row in rows)
    return [text[:_CHARACTERS] for text in itertools.islice(texts, _DOCUMENTS)]


def sample_texts(
    model: Transformer, tokenizer: Tokenizer, prompts: Sequence[str], max_new_tokens: int = 40
) -> list[str]:
    """Each prompt with its greedy continuation behind an arrow."""
    params = SamplingParams(max_new_tokens=max_new_tokens, stop=("\n",))
    return [
        f"{prompt} → {generate_text(model, tokenizer, prompt, params).strip()}"
        for prompt in prompts
    ]
