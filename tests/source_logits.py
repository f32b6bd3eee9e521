"""Computes with what a conversion has read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from small_models import logits_of, pack
from torch import Tensor

from minimind.interop.source import Source
from minimind.model.state_dict import join_fused
from minimind.model.transformer import Transformer


def source_logits(source: Source, ids: Sequence[int]) -> Tensor:
    """Gives the logits of one document with the source's weights in fp32."""
    state = join_fused(source.config, source.tensors, "test")
    model = Transformer(source.config).eval()
    model.load_named({name: tensor.float() for name, tensor in state.items()})
    with torch.no_grad():
        return logits_of(model, pack([[ids]]))
