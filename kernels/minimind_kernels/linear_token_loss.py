"""Computes the output layer and a loss of each token's log-probability, such as a policy gradient.

    log_prob_t = z_t[id_t] - logsumexp(z_t),   z_t = hidden_t · weightᵀ,   loss_t = f_t(log_prob_t)

∂loss_t/∂z_t = f_t'(log_prob_t) · (onehot(id_t) - softmax(z_t)) is known once log_prob_t is, so the
logits of a chunk are computed only once and give both gradients. That takes 3 products with the
head; `linear_log_prob` takes 4, because it gets its gradient after the logits were dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import backend
from .cross_entropy import cross_entropy_grad, cross_entropy_loss
from .linear_loss import (
    build_head,
    check_linear_loss,
    linear_cross_entropy_reference,
    linear_log_prob,
)
from .op import IGNORED, Case, Inputs, Op
from .token_chunks import EarlyGrads, TokenChunks, rows_worth_gathering, scatter_rows

Rows = slice | Tensor
"""An index of some of M tokens for a tensor [M]: a slice, or an int64 tensor."""

TokenLoss = Callable[[Tensor, Rows], Tensor]
"""Gives loss_C from log_prob_C and the rows of these C tokens."""


def linear_token_loss_reference(
    hidden_MD: Tensor,
    weight_VD: Tensor,
    ids_M: Tensor,
    token_loss: TokenLoss,
    ignore_index: int = -100,
) -> tuple[Tensor, Tensor]:
    """Computes the formula in PyTorch, with all logits at once; the softmax in fp32 (fp64 stays
    fp64)."""
    ce_M = linear_cross_entropy_reference(hidden_MD, weight_VD, ids_M, ignore_index)
    return _apply(token_loss, -ce_M, ids_M != ignore_index)


def linear_token_loss(
    hidden_MD: Tensor,
    weight_VD: Tensor,
    ids_M: Tensor,
    token_loss: TokenLoss,
    ignore_index: int = -100,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Gives (loss_M, log_prob_M) in fp32, 0 where the id is `ignore_index`; only the first has a
    gradient, the other is for logging.

    hidden_MD and weight_VD are of one dtype, fp32, fp16 or bf16; ids_M is int64, each of 0 to V - 1
    or `ignore_index`: any other id has a log-probability of NaN. Chunks and the use of fp32 are as
    in `linear_cross_entropy`.

    `token_loss(log_prob_C, rows)` gives loss_C of some tokens, once for each chunk. It is
    elementwise in log_prob_C and differentiable by autograd. Its other numbers of each token, such
    as an advantage, are tensors [M] that it holds and reads as `advantage_M[rows]`: `rows` is a
    slice, or a tensor of indices where ignored tokens were left out. These tensors receive no
    gradient; where a token is ignored they may hold anything, NaN too.

    The gradients are computed in the forward pass, and the backward pass only scales them. So the
    losses may only be summed and the sum scaled (any mean), as under `uniform_grad` in
    `linear_cross_entropy`; a token's own weight belongs inside `token_loss`. Where the head is
    frozen, the gradient may differ from token to token. torch.compile sees `linear_log_prob` and
    then `token_loss`, with one product more.

    Raises ValueError where shapes or dtypes do not agree, or where the result of `token_loss` has
    another shape than log_prob_C or no derivative.
    """
    check_linear_loss(hidden_MD, weight_VD, ids_M)
    want_grad = torch.is_grad_enabled() and (hidden_MD.requires_grad or weight_VD.requires_grad)
    if torch.compiler.is_compiling() or not want_grad:
        log_prob_M = linear_log_prob(hidden_MD, weight_VD, ids_M, ignore_index, chunk_size)
        return _apply(token_loss, log_prob_M, ids_M != ignore_index)
    in_triton = backend.use_triton("linear_token_loss", hidden_MD, weight_VD)
    rows_R = rows_worth_gathering(ids_M, ignore_index, in_triton)
    if rows_R is not None:
        results = linear_token_loss(
            hidden_MD.index_select(0, rows_R), weight_VD, ids_M[rows_R],
            lambda log_prob_C, rows: token_loss(log_prob_C, rows_R[rows]), ignore_index, chunk_size,
        )  # fmt: skip
        loss_M, log_prob_M = (scatter_rows(x_R, rows_R, len(ids_M)) for x_R in results)
        return loss_M, log_prob_M
    return _TokenLoss.apply(hidden_MD, weight_VD, ids_M, token_loss, ignore_index, chunk_size)


def _apply(
    token_loss: TokenLoss, log_prob_M: Tensor, is_counted_M: Tensor
) -> tuple[Tensor, Tensor]:
    """Gives (loss_M, log_prob_M) by autograd, of all tokens at once."""
    # The losses and derivatives of ignored tokens are left out: they may be NaN.
    log_prob_M = torch.where(is_counted_M, log_prob_M, 0.0)
    loss_M = _call(token_loss, log_prob_M, slice(0, len(log_prob_M)))
    return torch.where(is_counted_M, loss_M, 0.0), log_prob_M.detach()


def _call(token_loss: TokenLoss, log_prob_C: Tensor, rows: slice) -> Tensor:
    """Gives the losses in log_prob's dtype. Raises ValueError for another shape."""
    loss_C = token_loss(log_prob_C, rows)
    if loss_C.shape != log_prob_C.shape:
        raise ValueError(
            f"token_loss was given log-probabilities {tuple(log_prob_C.shape)} and must give a "
            f"loss for each, not {tuple(loss_C.shape)}"
        )
    return loss_C.to(log_prob_C.dtype)


@torch.enable_grad()
def _differentiate(token_loss: TokenLoss, log_prob_C: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    """Gives the losses, and the derivative of each by its log-probability."""
    log_prob_C = log_prob_C.detach().requires_grad_()
    loss_C = _call(token_loss, log_prob_C, rows)
    if not loss_C.requires_grad:
        raise ValueError(
            "token_loss gave a loss without a gradient: it must depend on the log-probabilities "
            "that it is given, by operations that autograd can follow"
        )
    (slope_C,) = torch.autograd.grad(loss_C, log_prob_C, torch.ones_like(loss_C))
    return loss_C.detach(), slope_C


class _TokenLoss(EarlyGrads):
    @staticmethod
    def forward(ctx, hidden_MD, weight_VD, ids_M, token_loss, ignored, chunk_size):
        chunks = TokenChunks(hidden_MD, weight_VD, chunk_size, ctx.needs_input_grad[:2])
        loss_M = hidden_MD.new_empty(ids_M.shape, dtype=chunks.loss_dtype)
        ce_M, max_M, log_sum_M = (torch.empty_like(loss_M) for _ in range(3))
        options: dict[str, Any] = {"generated": chunks.generated, "ignored": ignored}
        for rows in chunks.slices:
            logits_CV = chunks.logits(rows)
            softmax = max_M[rows], log_sum_M[rows]
            cross_entropy_loss(
                logits_CV, ids_M[rows], ce_M[rows], *softmax, with_grad=False, **options
            )
            loss_M[rows], slope_C = _differentiate(token_loss, -ce_M[rows], rows)
            # A log-probability is a negative cross-entropy. Ignored tokens' slopes are not read.
            cross_entropy_grad(logits_CV, ids_M[rows], *softmax, -slope_C, **options)
            chunks.add_grads(rows, logits_CV)
        loss_M, log_prob_M = torch.where(ids_M == ignored, 0.0, loss_M), -ce_M
        ctx.mark_non_differentiable(log_prob_M)
        is_trained = chunks.grad_weight_VD is not None
        EarlyGrads.keep(ctx, chunks, ids_M, ignored, uniform_grad=is_trained)
        return loss_M, log_prob_M


def _build(inputs: Inputs, *, ignored: str = "none", chunk_size: int | None = None) -> Case:
    """Builds a case with PPO's clipped ratio."""
    ids = inputs.labels(ignored)
    tensors, moved, product = build_head(inputs)
    old_log_prob, advantage = (torch.randn(inputs.tokens, device=inputs.device) for _ in range(2))

    def ppo(log_prob: Tensor, rows: Rows) -> Tensor:
        ratio = (log_prob - old_log_prob[rows]).exp()
        return -torch.minimum(ratio * advantage[rows], ratio.clamp(0.8, 1.2) * advantage[rows])

    return Case(
        "linear_token_loss", inputs.sizes,
        lambda h, w: linear_token_loss(h, w, ids, ppo, chunk_size=chunk_size)[0],
        lambda h, w: linear_token_loss_reference(h, w, ids, ppo)[0],
        tensors, moved, 0, 3 * product, 0, uniform_grad=True,
    )  # fmt: skip


LINEAR_TOKEN_LOSS = Op(
    linear_token_loss,
    linear_token_loss_reference,
    "f(log-probability of id), logits made once",
    _build,
    tested={
        "tokens": (0, 13),
        "ignored": tuple(IGNORED),
        "chunk_size": (None, 4),
    },
    compiled_for=("V {vocab}",),
    launches={"linear_token_loss": 17},
)
