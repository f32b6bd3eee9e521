"""Changes Hugging Face folders for tests, and computes what the models in them do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from small_models import assert_same_gradients, gradients, logits_of, pack, random_documents
from torch import Tensor

from minimind.model.state_dict import load_hf_folder, split_fused
from minimind.model.transformer import Transformer

(IDS,) = random_documents([40])


def logits_in(folder: Path) -> Tensor:
    """Of the model that this project reads there."""
    config, weights = load_hf_folder(folder)
    model = Transformer(config)
    model.load_named(weights)
    with torch.no_grad():
        return logits_of(model.eval(), pack([[IDS]]))


def transformers_model(folder: Path) -> Any:
    """As `transformers` reads it; every tensor must find its place."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def transformers_logits(folder: Path) -> Tensor:
    with torch.no_grad():
        return transformers_model(folder)(torch.tensor([IDS])).logits[0]


def assert_gradients_of_hf(model: Transformer, loss: Tensor, hf_model: Any) -> None:
    """The gradients of the loss are those that `hf_model`, of transformers, has from a backward."""
    found = split_fused(model.config, gradients(model, loss))
    wanted = {name: p.grad for name, p in hf_model.named_parameters()}
    assert found.keys() - {"lm_head.weight"} == wanted.keys() - {"lm_head.weight"}
    assert_same_gradients({name: found[name] for name in found.keys() & wanted.keys()}, wanted)


def edit_config(folder: Path, **changes: Any) -> None:
    """A change to None takes the field away."""
    path = folder / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
