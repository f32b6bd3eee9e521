"""Computes the output layer and its loss together: logits exist for a chunk of tokens at a time.

    z_t = hidden_t · weightᵀ,   loss_t = logsumexp(z_t) - z_t[label_t]

With p = softmax(z): ∂loss_t/∂z_t = p_t - onehot(label_t), from which the gradients of hidden and
weight are two more products. Chunking after Hsu et al., "Liger Kernel", 2024, and Wijmans et al.,
"Cut Your Losses in Large-Vocabulary Language Models", 2024.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from . import backend
from .cross_entropy import cross_entropy_grad, cross_entropy_loss
from .loss_rivals import cross_entropy_rivals, log_prob_rivals
from .op import BOTH, IGNORED, Case, Goal, Inputs, Op, Registers
from .token_chunks import EarlyGrads, TokenChunks, common_grad, rows_worth_gathering, scatter_rows

MAX_KEPT_BYTES = 256 << 20
"""The most bytes of logits that a loss with any gradient keeps for its backward: those of 16,384
tokens over 6,400 entries in bf16 are 210 MB."""


def linear_cross_entropy_reference(
    hidden_MD: Tensor, weight_VD: Tensor, labels_M: Tensor, ignore_index: int = -100
) -> Tensor:
    """Computes the formula in PyTorch, with all logits at once; the softmax in fp32 (fp64 stays
    fp64)."""
    logits_MV = functional.linear(hidden_MD, weight_VD)
    logits_MV = logits_MV.to(torch.promote_types(logits_MV.dtype, torch.float32))
    return functional.cross_entropy(
        logits_MV, labels_M, ignore_index=ignore_index, reduction="none"
    )


def linear_cross_entropy(
    hidden_MD: Tensor,
    weight_VD: Tensor,
    labels_M: Tensor,
    ignore_index: int = -100,
    chunk_size: int | None = None,
    uniform_grad: bool = False,
    max_kept_bytes: int = MAX_KEPT_BYTES,
) -> Tensor:
    """Computes the cross-entropy of each token's label under hidden · weightᵀ: loss_M in fp32, 0
    where ignored.

    hidden_MD and weight_VD are of one dtype, fp32, fp16 or bf16; labels_M is int64, each of 0 to
    V - 1 or `ignore_index`: any other label gives a loss of NaN, and NaN gradients. At most
    `chunk_size` tokens' logits exist at once, in hidden's dtype as a plain linear layer gives them;
    the softmax runs in fp32, and the weight's gradient is summed over chunks in fp32.

    The gradient may differ from token to token. The logits of all tokens are then kept for the
    backward pass if they take at most `max_kept_bytes`; if they take more, the backward pass makes
    them anew, a third more work. Neither is needed where the weight is frozen, or where the caller
    will only sum the losses and scale the sum (any mean) and says `uniform_grad=True`: gradients
    are then computed in the forward pass, and the backward pass only scales them. Under
    `uniform_grad`, gradients that differ between counted tokens are an error (on a GPU a
    device-side assertion, so that nothing waits).

    Raises ValueError where shapes or dtypes do not agree.
    """
    check_linear_loss(hidden_MD, weight_VD, labels_M)
    in_triton = backend.use_triton("linear_cross_entropy", hidden_MD, weight_VD)
    if torch.compiler.is_compiling() and not in_triton:
        return linear_cross_entropy_reference(hidden_MD, weight_VD, labels_M, ignore_index)
    rows_R = rows_worth_gathering(labels_M, ignore_index, in_triton)
    if rows_R is not None:
        loss_R = linear_cross_entropy(
            hidden_MD.index_select(0, rows_R), weight_VD, labels_M[rows_R], ignore_index,
            chunk_size, uniform_grad, max_kept_bytes,
        )  # fmt: skip
        return scatter_rows(loss_R, rows_R, len(labels_M))
    inputs = (hidden_MD, weight_VD, labels_M, ignore_index, chunk_size)
    if torch.is_grad_enabled() and (hidden_MD.requires_grad or weight_VD.requires_grad):
        if uniform_grad or not weight_VD.requires_grad:
            return _EarlyCrossEntropy.apply(*inputs, uniform_grad)
        return _CrossEntropy.apply(*inputs, max_kept_bytes)
    return _loss_chunks(*inputs)[0]


def linear_log_prob_reference(
    hidden_MD: Tensor, weight_VD: Tensor, ids_M: Tensor, ignore_index: int = -100
) -> Tensor:
    return -linear_cross_entropy_reference(hidden_MD, weight_VD, ids_M, ignore_index)


def linear_log_prob(
    hidden_MD: Tensor,
    weight_VD: Tensor,
    ids_M: Tensor,
    ignore_index: int = -100,
    chunk_size: int | None = None,
    max_kept_bytes: int = MAX_KEPT_BYTES,
) -> Tensor:
    """Computes the log-probability of each token's id under hidden · weightᵀ: [M] fp32, 0 where
    ignored.

    It is the negative of `linear_cross_entropy`, with any gradient for each token, for preference
    and policy-gradient objectives. See there for shapes, dtypes and errors.
    """
    return -linear_cross_entropy(
        hidden_MD, weight_VD, ids_M, ignore_index, chunk_size, max_kept_bytes=max_kept_bytes
    )


def check_linear_loss(hidden_MD: Tensor, weight_VD: Tensor, labels_M: Tensor) -> None:
    """Raises ValueError where shapes or dtypes do not agree."""
    if (
        hidden_MD.ndim != 2
        or weight_VD.ndim != 2
        or hidden_MD.shape[1] != weight_VD.shape[1]
        or labels_M.shape != hidden_MD.shape[:1]
        or hidden_MD.dtype != weight_VD.dtype
    ):
        raise ValueError(
            "a linear loss takes hidden [M, D] and weight [V, D] of one dtype and labels [M], not "
            f"{tuple(hidden_MD.shape)} {hidden_MD.dtype}, {tuple(weight_VD.shape)} "
            f"{weight_VD.dtype} and {tuple(labels_M.shape)}"
        )


def _loss_chunks(
    hidden_MD: Tensor,
    weight_VD: Tensor,
    labels_M: Tensor,
    ignored: int,
    chunk_size: int | None,
    max_kept_bytes: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gives the results of `cross_entropy_loss` for all tokens, and their logits if they are to be
    kept and take at most `max_kept_bytes`."""
    chunks = TokenChunks(hidden_MD, weight_VD, chunk_size)
    kept_MV = None if max_kept_bytes is None else chunks.new_logits_within(max_kept_bytes)
    loss_M = hidden_MD.new_empty(labels_M.shape, dtype=chunks.loss_dtype)
    max_M, log_sum_M = torch.empty_like(loss_M), torch.empty_like(loss_M)
    for rows in chunks.slices:
        cross_entropy_loss(
            chunks.logits(rows, kept_MV), labels_M[rows], loss_M[rows], max_M[rows],
            log_sum_M[rows], generated=chunks.generated, ignored=ignored, with_grad=False,
        )  # fmt: skip
    return loss_M, max_M, log_sum_M, kept_MV


class _CrossEntropy(torch.autograd.Function):
    """Takes any gradient for each token: the backward pass overwrites the logits that were kept, or
    makes them a second time."""

    @staticmethod
    def forward(ctx, hidden_MD, weight_VD, labels_M, ignored, chunk_size, max_kept_bytes):
        inputs = hidden_MD, weight_VD, labels_M
        # What torch.compile traces may not be overwritten.
        most = None if torch.compiler.is_compiling() else max_kept_bytes
        loss_M, *kept = _loss_chunks(*inputs, ignored, chunk_size, most)
        ctx.save_for_backward(*inputs, *kept)
        ctx.ignored, ctx.chunk_size, ctx.is_overwritten = ignored, chunk_size, False
        return loss_M

    @staticmethod
    def backward(ctx, grad_M):
        hidden_MD, weight_VD, labels_M, max_M, log_sum_M, kept_MV = ctx.saved_tensors
        if ctx.is_overwritten:
            kept_MV = None
        chunks = TokenChunks(hidden_MD, weight_VD, ctx.chunk_size, ctx.needs_input_grad[:2])
        if kept_MV is not None:
            ctx.is_overwritten = True
            # A second backward through a retained graph asks autograd for this tensor again.
            kept_MV = kept_MV.data
        for rows in chunks.slices:
            logits_CV = chunks.logits(rows) if kept_MV is None else kept_MV[rows]
            cross_entropy_grad(
                logits_CV, labels_M[rows], max_M[rows], log_sum_M[rows], grad_M[rows],
                generated=chunks.generated, ignored=ctx.ignored,
            )  # fmt: skip
            chunks.add_grads(rows, logits_CV)
        return *chunks.grads(), *(None,) * 4


class _EarlyCrossEntropy(EarlyGrads):
    @staticmethod
    def forward(ctx, hidden_MD, weight_VD, labels_M, ignored, chunk_size, uniform_grad):
        chunks = TokenChunks(hidden_MD, weight_VD, chunk_size, ctx.needs_input_grad[:2])
        loss_M = hidden_MD.new_empty(labels_M.shape, dtype=chunks.loss_dtype)
        for rows in chunks.slices:
            logits_CV = chunks.logits(rows)
            cross_entropy_loss(
                logits_CV, labels_M[rows], loss_M[rows], None, None, generated=chunks.generated,
                ignored=ignored, with_grad=True,
            )  # fmt: skip
            chunks.add_grads(rows, logits_CV)
        EarlyGrads.keep(ctx, chunks, labels_M, ignored, uniform_grad=uniform_grad)
        return loss_M


def build_head(inputs: Inputs) -> tuple[tuple[Tensor, Tensor], int, int]:
    """Builds hidden states and a head; also gives the bytes of both and of their gradients, and the
    FLOPs of their product."""
    tokens, hidden, vocab = inputs.tokens, inputs.sizes.hidden, inputs.sizes.vocab
    moved = 2 * (inputs.bytes_of(tokens, hidden) + inputs.bytes_of(vocab, hidden))
    return (inputs.rows(hidden), inputs.matrix(vocab, hidden)), moved, 2 * tokens * hidden * vocab


def _build(inputs: Inputs, *, ignored: str = "none", chunk_size: int | None = None) -> Case:
    labels = inputs.labels(ignored)
    tensors, moved, product = build_head(inputs)
    return Case(
        "linear_cross_entropy", inputs.sizes,
        lambda h, w: linear_cross_entropy(h, w, labels, chunk_size=chunk_size, uniform_grad=True),
        lambda h, w: linear_cross_entropy_reference(h, w, labels),
        tensors, moved, 0, 3 * product, 0, uniform_grad=True,
        rivals=cross_entropy_rivals(labels),
    )  # fmt: skip


def _build_log_prob(
    inputs: Inputs, *, ignored: str = "none", chunk_size: int | None = None, frozen: str = "",
    max_kept_bytes: int = MAX_KEPT_BYTES,
) -> Case:  # fmt: skip
    """Builds a case. `frozen` names which of hidden and weight has no gradient."""
    ids = inputs.labels(ignored)
    tensors, moved, product = build_head(inputs)
    tensors[0].requires_grad_(frozen != "hidden")
    tensors[1].requires_grad_(frozen != "weight")
    return Case(
        "linear_log_prob", inputs.sizes,
        lambda h, w: linear_log_prob(
            h, w, ids, chunk_size=chunk_size, max_kept_bytes=max_kept_bytes
        ),
        lambda h, w: linear_log_prob_reference(h, w, ids),
        tensors, moved // 2, moved, product, 2 * product,
        rivals=log_prob_rivals(ids),
    )  # fmt: skip


_TESTED = {
    "tokens": (0, 1, 11),
    "ignored": tuple(IGNORED),
    "chunk_size": (None, 4),
    # Two blocks of the interpreter's tile, and one.
    "vocab": (101, 51),
}
_SCALES = (1e-3, 20.0)
LINEAR_CROSS_ENTROPY = Op(
    linear_cross_entropy,
    linear_cross_entropy_reference,
    "logsumexp(h·Wᵀ) - (h·Wᵀ)[label]",
    _build,
    tested=_TESTED,
    scales=_SCALES,
    compiled_for=("V {vocab}",),
    forms=(cross_entropy_loss, common_grad),
    tiles=("softmax",),
    registers={
        "cross_entropy.loss": Registers(61, 61, 59, 54, 72),
        "common_grad.common_grad": Registers(58, 59, 60, 58, 32),
    },
    launches={"linear_cross_entropy": 9},
    goals=(Goal("linear_cross_entropy", BOTH, {"minimind2-small": 650, "minimind2": 900}),),
)
LINEAR_LOG_PROB = Op(
    linear_log_prob,
    linear_log_prob_reference,
    "(h·Wᵀ)[id] - logsumexp(h·Wᵀ)",
    _build_log_prob,
    tested=_TESTED | {"frozen": ("", "hidden", "weight"), "max_kept_bytes": (MAX_KEPT_BYTES, 0)},
    scales=_SCALES,
    compiled_for=("V {vocab}",),
    forms=(cross_entropy_grad,),
    registers={"cross_entropy.grad": Registers(48, 40, 50, 32, 55)},
    launches={"linear_log_prob": 16},
    goals=(
        Goal("linear_log_prob", ("forward",), {"minimind2-small": 230, "minimind2": 320}),
        Goal("linear_log_prob", BOTH, {"minimind2-small": 650, "minimind2": 900}),
    ),
)
