"""One sequence after another: prompt in, tokens or text out, through a preallocated cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from minimind.data.tokenizer import Tokenizer
from minimind.errors import ConfigError
from minimind.inference.sampling import Sampler, SamplingParams
from minimind.model.adapter_folder import load_model_folder
from minimind.model.kv_cache import KVCache
from minimind.model.transformer import Transformer


def load_model(
    folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> tuple[Transformer, Tokenizer]:
    """A model folder's model, ready to generate, with an adapter merged, and its tokenizer. Raises
    a MiniMindError where one of them is missing or they do not fit."""
    config, weights = load_model_folder(folder)
    tokenizer = Tokenizer.load(folder)
    tokenizer.check_fits(config.vocab_size)
    model = Transformer(config)
    model.load_named(weights)
    model.to(device or torch.device("cpu"), dtype).eval()
    return model, tokenizer


def stream_ids(
    model: Transformer,
    prompt_ids: Sequence[int],
    params: SamplingParams,
    *,
    stop_ids: Sequence[int] = (),
) -> Iterator[int]:
    """New token ids as they are made, up to max_new_tokens or one of `stop_ids`, which is not
    given out. A prompt that is empty or too long for the model's context raises ConfigError."""
    context = model.config.max_position_embeddings
    if not prompt_ids:
        raise ConfigError("the prompt is empty: give at least the token that starts a document")
    if len(prompt_ids) + params.max_new_tokens > context:
        raise ConfigError(
            f"a prompt of {len(prompt_ids)} tokens and {params.max_new_tokens} new ones do not fit "
            f"the model's context of {context}"
        )
    weight = model.lm_head.weight
    device = weight.device
    capacity = len(prompt_ids) + params.max_new_tokens
    cache = KVCache(model.config, capacity, dtype=weight.dtype, device=device)
    sampler = Sampler(params, prompt_ids, device)
    ids = torch.tensor(prompt_ids, dtype=torch.int64, device=device)
    for _ in range(params.max_new_tokens):
        ids = sampler(model.decode(ids, cache))
        token = int(ids)
        if token in stop_ids:
            return
        yield token


def stream_text(
    model: Transformer, tokenizer: Tokenizer, prompt_ids: Sequence[int], params: SamplingParams
) -> Iterator[str]:
    """The continuation in pieces of whole characters, ended by the tokenizer's end of text or one
    of params.stop; text that might begin a stop string is held back until it is known not to."""
    decoder = tokenizer.stream_decoder()
    held = ""
    for token in stream_ids(model, prompt_ids, params, stop_ids=(tokenizer.eos_id,)):
        held, stopped = _cut_at_stop(held + decoder.push(token), params.stop)
        safe = len(held) if stopped else len(held) - _possible_start(held, params.stop)
        if safe:
            yield held[:safe]
        if stopped:
            return
        held = held[safe:]
    held, _ = _cut_at_stop(held + decoder.flush(), params.stop)
    if held:
        yield held


def generate_text(
    model: Transformer, tokenizer: Tokenizer, prompt: str, params: SamplingParams
) -> str:
    """The continuation of a document that starts with `prompt`, without the prompt."""
    prompt_ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    return "".join(stream_text(model, tokenizer, prompt_ids, params))


def _cut_at_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop string, and whether there was one."""
    ends = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return (text[: min(ends)], True) if ends else (text, False)


def _possible_start(text: str, stops: Sequence[str]) -> int:
    """Characters at the end of `text` that some stop string may begin with."""
    longest = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:length]):
                longest = length
                break
    return longest
