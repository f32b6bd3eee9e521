"""Generates one sequence: takes a prompt and gives its continuation as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from minimind.data.tokenizer import Tokenizer
from minimind.inference.batch_engine import BatchEngine
from minimind.inference.request import GenerationRequest
from minimind.inference.sampling import SamplingParams
from minimind.model.transformer import Transformer


def stream_text(
    model: Transformer, tokenizer: Tokenizer, prompt_ids: Sequence[int], params: SamplingParams
) -> Iterator[str]:
    """Yields the continuation in pieces of whole characters, up to the end-of-text token or a
    string of params.stop. Text that may begin a stop string is held back until that is decided.
    Raises ConfigError for a prompt that is empty or too long for the model's context."""
    length = max(len(prompt_ids) + params.max_new_tokens, 1)
    engine = BatchEngine(model, tokenizer, max_batch=1, max_tokens=length, fast_decode=False)
    stop_ids = (tokenizer.eos_id,)
    request = GenerationRequest(prompt_ids=prompt_ids, params=params, stop_ids=stop_ids)
    for delta in engine.stream(request):
        if delta.text:
            yield delta.text


def generate_text(
    model: Transformer, tokenizer: Tokenizer, prompt: str, params: SamplingParams
) -> str:
    """Gives the continuation of a document that begins with `prompt`, without the prompt."""
    prompt_ids = tokenizer.encode_document(prompt)
    return "".join(stream_text(model, tokenizer, prompt_ids, params))
