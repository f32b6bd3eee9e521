"""Provides Hugging Face folders of small models, by this project and by `transformers`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_adapters import named
from small_models import random_model, small_config

from minimind.model.state_dict import save_hf_folder
from minimind.model.transformer import Transformer


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., tuple[Path, Transformer]]:
    """saved(family, **changes) -> a folder, and the model that was written there."""

    def make(family: str = "qwen3", **changes: Any) -> tuple[Path, Transformer]:
        model = random_model(small_config(family, **changes)).eval()
        folder = tmp_path / "model"
        save_hf_folder(folder, model.config, named(model), torch.float32)
        return folder, model

    return make


@pytest.fixture
def hf_saved(tmp_path: Path) -> Callable[..., Path]:
    """hf_saved("LlamaConfig", shards=False, **fields) -> a folder that `transformers` wrote."""

    def make(kind: str, shards: bool = False, **fields: Any) -> Path:
        import transformers

        sizes = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "bos_token_id": 1}
        sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
        torch.manual_seed(1)
        model = transformers.AutoModelForCausalLM.from_config(
            getattr(transformers, kind)(**(sizes | fields))
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        options = {"max_shard_size": "20KB"} if shards else {}
        folder = tmp_path / "from_transformers"
        model.save_pretrained(folder, **options)
        assert len(list(folder.glob("*.safetensors"))) > 1 or not shards
        return folder

    return make
