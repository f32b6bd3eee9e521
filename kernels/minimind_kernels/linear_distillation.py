"""Computes cross-entropy and divergence from a teacher over one set of logits, in chunks of tokens.

    loss_t = α · cross_entropy_t + (1 - α) · T² · KL_t

with z = hidden · weightᵀ, cross_entropy_t as in linear_loss.py, KL_t as in linear_kl.py at the
temperature T: ∂loss_t/∂z_t = α · (softmax(z) - onehot) + (1 - α) · T · (q - p). The logits of the
student and the products of its gradients are made once: 4 products, not the 7 of two separate
losses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import backend
from .cross_entropy import label_logits
from .form import Form
from .linear_kl import build_teacher, check_teacher, linear_kl_reference, log_softmax
from .linear_loss import build_head, linear_cross_entropy_reference
from .op import IGNORED, Case, Function, Inputs, Op, Registers
from .token_chunks import EarlyGrads, TokenChunks, rows_worth_gathering, scatter_rows


def linear_distillation_reference(
    hidden_MD: Tensor,
    weight_VD: Tensor,
    teacher_hidden_ME: Tensor,
    teacher_weight_VE: Tensor,
    labels_M: Tensor,
    alpha: float = 0.5,
    temperature: float = 1.0,
    ignore_index: int = -100,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the two losses by the formula in PyTorch, with all logits at once."""
    teacher = (teacher_hidden_ME.detach(), teacher_weight_VE.detach())
    ce_M = linear_cross_entropy_reference(hidden_MD, weight_VD, labels_M, ignore_index)
    is_counted_M = labels_M != ignore_index
    kl_M = linear_kl_reference(hidden_MD, weight_VD, *teacher, temperature, is_counted_M)
    loss_M = alpha * ce_M + (1 - alpha) * temperature**2 * kl_M
    return loss_M, ce_M.detach(), kl_M.detach()


def linear_distillation(
    hidden_MD: Tensor,
    weight_VD: Tensor,
    teacher_hidden_ME: Tensor,
    teacher_weight_VE: Tensor,
    labels_M: Tensor,
    alpha: float = 0.5,
    temperature: float = 1.0,
    ignore_index: int = -100,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gives (loss_M, cross_entropy_M, kl_M) in fp32, 0 where the label is `ignore_index`; only the
    first has a gradient, the others are for logging.

    hidden_MD and weight_VD are of one dtype, fp32, fp16 or bf16. The teacher's tensors are of one
    dtype too; its width may differ from the student's, its vocabulary may not. labels_M is int64.
    The losses may only be summed and the sum scaled, as under `uniform_grad` in linear_loss.py:
    gradients are computed in the forward pass. Chunks, the use of fp32 and labels outside the
    vocabulary are as in `linear_cross_entropy`.

    Raises ValueError where shapes do not agree or the temperature is not positive.
    """
    inputs = (hidden_MD, weight_VD, teacher_hidden_ME.detach(), teacher_weight_VE.detach())
    check_teacher("linear_distillation", *inputs, temperature)
    if labels_M.shape != hidden_MD.shape[:1]:
        raise ValueError(
            f"linear_distillation takes labels [M] for hidden [M, D], not {tuple(labels_M.shape)} "
            f"for {tuple(hidden_MD.shape)}"
        )
    in_triton = backend.use_triton("linear_distillation", *inputs)
    if torch.compiler.is_compiling() and not in_triton:
        return linear_distillation_reference(*inputs, labels_M, alpha, temperature, ignore_index)
    rows_R = rows_worth_gathering(labels_M, ignore_index, in_triton)
    if rows_R is not None:
        losses = linear_distillation(
            hidden_MD.index_select(0, rows_R), weight_VD, teacher_hidden_ME.index_select(0, rows_R),
            teacher_weight_VE, labels_M[rows_R], alpha, temperature, ignore_index, chunk_size,
        )  # fmt: skip
        loss_M, ce_M, kl_M = (scatter_rows(loss_R, rows_R, len(labels_M)) for loss_R in losses)
        return loss_M, ce_M, kl_M
    options = (labels_M, alpha, temperature, ignore_index, chunk_size)
    if torch.is_grad_enabled() and (hidden_MD.requires_grad or weight_VD.requires_grad):
        return _Distillation.apply(*inputs, *options)
    return _loss_chunks(*inputs, *options)[0]


def _distillation_body(
    logits_CV: Tensor,
    teacher_logits_CV: Tensor,
    labels_C: Tensor,
    ce_C: Tensor,
    kl_C: Tensor,
    *,
    alpha: float,
    temperature: float,
    ignored: int,
    with_grad: bool,
) -> None:
    """Writes cross-entropies and divergences, 0 where the label is ignored; with `with_grad`,
    overwrites the student's logits with the gradient of the sum of the losses."""
    log_prob_CV, student_CV, teacher_CV = (
        log_softmax(logits_CV, 1.0),
        log_softmax(logits_CV, temperature),
        log_softmax(teacher_logits_CV, temperature),
    )
    is_ignored_C = labels_C == ignored
    label_log_prob_C = label_logits(log_prob_CV, labels_C)
    teacher_prob_CV = teacher_CV.exp()
    divergence_C = (teacher_prob_CV * (teacher_CV - student_CV)).sum(dim=-1)
    divergence_C = torch.where(label_log_prob_C.isnan(), torch.nan, divergence_C)
    ce_C.copy_(torch.where(is_ignored_C, 0.0, -label_log_prob_C))
    kl_C.copy_(torch.where(is_ignored_C, 0.0, divergence_C))
    if with_grad:
        columns_V = torch.arange(logits_CV.shape[1], device=logits_CV.device)
        is_label_CV = columns_V == labels_C.unsqueeze(1)
        probs_CV = log_prob_CV.exp()
        grad_CV = alpha * torch.where(is_label_CV, probs_CV - 1, probs_CV)
        grad_CV = grad_CV + (1 - alpha) * temperature * (student_CV.exp() - teacher_prob_CV)
        grad_CV = torch.where(label_log_prob_C.isnan().unsqueeze(1), torch.nan, grad_CV)
        logits_CV.copy_(torch.where(is_ignored_C.unsqueeze(1), 0.0, grad_CV))


_distillation = Form(
    "distillation:distillation", _distillation_body, num_row_tensors=5,
    overwrites=("logits_CV", "ce_C", "kl_C"),
)  # fmt: skip


def _loss_chunks(
    hidden_MD: Tensor,
    weight_VD: Tensor,
    teacher_hidden_ME: Tensor,
    teacher_weight_VE: Tensor,
    labels_M: Tensor,
    alpha: float,
    temperature: float,
    ignored: int,
    chunk_size: int | None,
    *,
    wanted: tuple[bool, bool] = (False, False),
) -> tuple[tuple[Tensor, Tensor, Tensor], TokenChunks]:
    """Gives the losses, and the TokenChunks with the gradients of the sum of the first loss."""
    chunks = TokenChunks(hidden_MD, weight_VD, chunk_size, wanted)
    teacher = TokenChunks(teacher_hidden_ME, teacher_weight_VE, chunk_size)
    ce_M = hidden_MD.new_empty(labels_M.shape, dtype=chunks.loss_dtype)
    kl_M = torch.empty_like(ce_M)
    for rows in chunks.slices:
        logits_CV = chunks.logits(rows)
        _distillation(
            logits_CV, teacher.logits(rows), labels_M[rows], ce_M[rows], kl_M[rows],
            generated=chunks.generated, alpha=alpha, temperature=temperature, ignored=ignored,
            with_grad=any(wanted),
        )  # fmt: skip
        chunks.add_grads(rows, logits_CV)
    loss_M = alpha * ce_M + (1 - alpha) * temperature**2 * kl_M
    return (loss_M, ce_M, kl_M), chunks


class _Distillation(EarlyGrads):
    @staticmethod
    def forward(ctx, *inputs):
        losses, chunks = _loss_chunks(*inputs, wanted=ctx.needs_input_grad[:2])
        ctx.mark_non_differentiable(*losses[1:])
        EarlyGrads.keep(ctx, chunks, labels_M=inputs[4], ignored=inputs[7], uniform_grad=True)
        return losses


def _build(
    inputs: Inputs, *, ignored: str = "none", chunk_size: int | None = None, alpha: float = 0.5,
    teacher_width: int | None = None,
) -> Case:  # fmt: skip
    labels = inputs.labels(ignored)
    tensors, moved, product = build_head(inputs)
    teacher = build_teacher(inputs, teacher_width)

    def run(op: Callable[..., tuple[Tensor, ...]], **options: Any) -> Function:
        def call(h: Tensor, w: Tensor) -> Tensor:
            return op(h, w, *(t.to(h.dtype) for t in teacher), labels, alpha, 1.5, **options)[0]

        return call

    return Case(
        "linear_distillation", inputs.sizes,
        run(linear_distillation, chunk_size=chunk_size), run(linear_distillation_reference),
        tensors, 2 * moved, 0, 4 * product, 0, uniform_grad=True,
    )  # fmt: skip


LINEAR_DISTILLATION = Op(
    linear_distillation,
    linear_distillation_reference,
    "α·cross-entropy + (1 - α)·T²·KL, logits made once",
    _build,
    tested={
        "tokens": (0, 1, 13),
        "ignored": tuple(IGNORED),
        "chunk_size": (None, 3),
        "alpha": (0.0, 0.3, 1.0),
        "teacher_width": (40,),
        "vocab": (101, 51),
        # Logits as far apart as a trained model's.
        "scale": (5.0,),
    },
    scales=(1e-3, 10.0),
    compiled_for=("V {vocab}",),
    forms=(_distillation,),
    registers={"distillation.distillation": Registers(128, 128, 128, 128, 126)},
    launches={"linear_distillation": 9},
)
