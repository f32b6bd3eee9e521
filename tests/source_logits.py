"""Compares what a conversion has read with the original's own computation."""

from __future__ import annotations

from typing import Any

import torch
from original_models import Plain, plain_logits
from small_models import logits_of, pack, random_documents
from torch import Tensor

from minimind.interop.source import Source
from minimind.model.state_dict import join_fused
from minimind.model.transformer import Transformer

(IDS,) = random_documents([30], vocab=61)


def check_logits(
    source: Source, plain: Plain, state: dict[str, Tensor], atol: float = 1e-5, **options: Any
) -> None:
    """Checks that the source's weights give the logits of the plain model, in fp32."""
    weights = join_fused(source.config, source.tensors, "test")
    model = Transformer(source.config).eval()
    model.load_named({name: tensor.float() for name, tensor in weights.items()})
    with torch.no_grad():
        found = logits_of(model, pack([[IDS]]))
    torch.testing.assert_close(
        found, plain_logits(plain, state, IDS, **options), atol=atol, rtol=1e-5
    )
