"""One sequence: prompt in, tokens or text out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from minimind.data.same_tokens import check_folder_tokens, describe_other_end
from minimind.data.tokenizer import Tokenizer
from minimind.errors import ConfigError
from minimind.inference.batch_engine import BatchEngine
from minimind.inference.request import GenerationRequest
from minimind.inference.sampling import SamplingParams
from minimind.model.adapter_folder import (
    find_base,
    fingerprint,
    is_adapter_folder,
    load_model_folder,
    tokenizer_folder,
)
from minimind.model.loaded_adapters import LoadedAdapters
from minimind.model.transformer import Transformer


def load_model(
    folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> tuple[Transformer, Tokenizer]:
    """A model folder's model, ready to generate, with an adapter merged, and its tokenizer. Raises
    a MiniMindError where one of them is missing or they do not fit."""
    config, weights = load_model_folder(folder)
    tokenizer = Tokenizer.load(tokenizer_folder(folder))
    if is_adapter_folder(folder):
        check_folder_tokens(
            tokenizer, find_base(folder).folder, "An adapter leaves its model's embedding as it "
            "is: put the model's own tokenizer beside it",
        )  # fmt: skip
    tokenizer.check_fits(config.vocab_size)
    model = Transformer(config)
    model.load_named(weights)
    model.to(device or torch.device("cpu"), dtype).eval()
    lay_out_for_decoding(model)
    return model, tokenizer


def load_adapters(
    model: Transformer, tokenizer: Tokenizer, base: Path, folders: Mapping[str, Path]
) -> LoadedAdapters | None:
    """The adapters of these names and folders over the model of the folder `base`, None for no
    name. Raises a MiniMindError where one is of another model or another tokenizer."""
    if not folders:
        return None
    adapters = LoadedAdapters(model, fingerprint(base))
    for name, folder in folders.items():
        adapters.load(name, folder)
        advice = (
            f"The adapter {name!r} was trained on other ids: give its folder as the checkpoint "
            "instead, or train one beside this model and its tokenizer"
        )
        check_folder_tokens(tokenizer, folder, advice)
        if said := describe_other_end(tokenizer, folder):  # its answers would not end
            raise ConfigError(f"{said}. {advice}")
    return adapters


@torch.no_grad()
def lay_out_for_decoding(model: Transformer) -> None:
    """Stores matrices by columns where that makes products of few rows quicker; values and shapes
    stay. MKL's fp32 products of 8 tokens take half the time then, of one or 512 the same; and
    cpu_decode reads them so."""
    for parameter in model.parameters():
        if parameter.dim() == 2 and parameter.dtype == torch.float32 and parameter.is_cpu:
            parameter.data = parameter.data.t().contiguous().t()


def stream_text(
    model: Transformer, tokenizer: Tokenizer, prompt_ids: Sequence[int], params: SamplingParams
) -> Iterator[str]:
    """The continuation in pieces of whole characters, ended by the tokenizer's end of text or one
    of params.stop; text that might begin a stop string is held back until it is known not to. A
    prompt that is empty or too long for the model's context raises ConfigError."""
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
    """The continuation of a document that starts with `prompt`, without the prompt."""
    prompt_ids = tokenizer.encode_document(prompt)
    return "".join(stream_text(model, tokenizer, prompt_ids, params))
