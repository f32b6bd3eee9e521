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
from .linear_kl import build_teacher, check_teacher, linear_kl_reference, softmax_stats
from .linear_loss import build_head, linear_cross_entropy_reference
from .op import IGNORED, Case, Function, Inputs, Op, Registers
from .token_chunks import WORTH_GATHERING, TokenChunks, scale_grads


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
    """Gives (loss_M, cross_entropy_M, kl_M) in fp32, 0 where the label is `ignore_index`; the first
    alone has a gradient, the others are to be logged.

    hidden_MD and weight_VD are of one dtype, fp32, fp16 or bf16. The teacher's are of one dtype
    too, whose width may differ but not its vocabulary; labels_M is int64. The losses may only be
    summed and the sum scaled, as under `uniform_grad` in linear_loss.py: gradients are computed in
    the forward pass. Chunks, fp32 and labels beyond the vocabulary are as there.

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
    on_cpu = not (in_triton or hidden_MD.is_cuda)
    if on_cpu and (labels_M != ignore_index).sum() < WORTH_GATHERING * len(labels_M):
        rows = (labels_M != ignore_index).nonzero().squeeze(1)
        losses = linear_distillation(
            hidden_MD.index_select(0, rows), weight_VD, teacher_hidden_ME.index_select(0, rows),
            teacher_weight_VE, labels_M[rows], alpha, temperature, ignore_index, chunk_size,
        )  # fmt: skip
        loss_M, ce_M, kl_M = (
            loss.new_zeros(labels_M.shape).index_put((rows,), loss) for loss in losses
        )
        return loss_M, ce_M, kl_M
    options = (labels_M, alpha, temperature, ignore_index, chunk_size)
    if torch.is_grad_enabled() and (hidden_MD.requires_grad or weight_VD.requires_grad):
        return _Distillation.apply(*inputs, *options)
    return _loss_chunks(*inputs, *options)[0]


def _loss_body(
    logits_CV: Tensor,
    teacher_logits_CV: Tensor,
    labels_C: Tensor,
    ce_C: Tensor,
    kl_C: Tensor,
    *,
    temperature: float,
    ignored: int,
) -> None:
    """Writes cross-entropies and divergences, 0 where the label is ignored."""
    wide_CV, max_C1, log_sum_C1 = softmax_stats(logits_CV, 1.0)
    label_logit_C = label_logits(wide_CV, labels_C)
    entropy_C = max_C1.squeeze(1) - label_logit_C + log_sum_C1.squeeze(1)
    log_prob_CV, teacher_log_prob_CV = (
        scaled_CV - max_C1 - log_sum_C1
        for scaled_CV, max_C1, log_sum_C1 in (
            softmax_stats(logits_CV, temperature),
            softmax_stats(teacher_logits_CV, temperature),
        )
    )
    divergence_C = (teacher_log_prob_CV.exp() * (teacher_log_prob_CV - log_prob_CV)).sum(dim=-1)
    divergence_C = torch.where(label_logit_C.isnan(), torch.nan, divergence_C)
    ce_C.copy_(torch.where(labels_C == ignored, 0.0, entropy_C))
    kl_C.copy_(torch.where(labels_C == ignored, 0.0, divergence_C))


def _loss_and_grad_body(
    logits_CV: Tensor,
    teacher_logits_CV: Tensor,
    labels_C: Tensor,
    ce_C: Tensor,
    kl_C: Tensor,
    *,
    alpha: float,
    temperature: float,
    ignored: int,
) -> None:
    """Writes the results of `_loss_body`; overwrites the student's logits with the gradient of the
    sum of the losses."""
    _loss_body(
        logits_CV, teacher_logits_CV, labels_C, ce_C, kl_C, temperature=temperature, ignored=ignored
    )
    probs_CV, student_CV, teacher_CV = (
        torch.exp(scaled_CV - max_C1 - log_sum_C1)
        for scaled_CV, max_C1, log_sum_C1 in (
            softmax_stats(logits_CV, 1.0),
            softmax_stats(logits_CV, temperature),
            softmax_stats(teacher_logits_CV, temperature),
        )
    )
    columns_V = torch.arange(logits_CV.shape[1], device=logits_CV.device)
    is_label_CV = columns_V == labels_C.unsqueeze(1)
    grad_CV = alpha * torch.where(is_label_CV, probs_CV - 1, probs_CV)
    grad_CV = grad_CV + (1 - alpha) * temperature * (student_CV - teacher_CV)
    is_known_C = (labels_C >= 0) & (labels_C < logits_CV.shape[1])
    grad_CV = torch.where(is_known_C.unsqueeze(1), grad_CV, torch.nan)
    logits_CV.copy_(torch.where((labels_C == ignored).unsqueeze(1), 0.0, grad_CV))


_loss = Form(
    "distillation:distillation_loss", _loss_body, num_row_tensors=5, overwrites=("ce_C", "kl_C")
)
_loss_and_grad = Form(
    "distillation:distillation_loss_and_grad", _loss_and_grad_body, num_row_tensors=5,
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
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor | None, Tensor | None]:
    """Gives the losses and, as far as wanted, the gradients of the sum of the first."""
    chunks = TokenChunks(hidden_MD, weight_VD, chunk_size)
    teacher = TokenChunks(teacher_hidden_ME, teacher_weight_VE, chunk_size)
    chunks.want_grads(*wanted)
    ce_M = hidden_MD.new_empty(labels_M.shape, dtype=chunks.loss_dtype)
    kl_M = torch.empty_like(ce_M)
    for rows in chunks.slices:
        logits_CV = chunks.logits(rows)
        tensors = (logits_CV, teacher.logits(rows), labels_M[rows], ce_M[rows], kl_M[rows])
        options = {"temperature": temperature, "ignored": ignored}
        if any(wanted):
            _loss_and_grad(*tensors, generated=chunks.generated, alpha=alpha, **options)
            chunks.add_grads(rows, logits_CV)
        else:
            _loss(*tensors, generated=chunks.generated, **options)
    loss_M = alpha * ce_M + (1 - alpha) * temperature**2 * kl_M
    return (loss_M, ce_M, kl_M), chunks.grad_hidden_MD, chunks.grad_weight_VD


class _Distillation(torch.autograd.Function):
    """Takes one gradient for all tokens: the forward pass computes everything except this
    factor."""

    @staticmethod
    def forward(ctx, *inputs):
        losses, *grads = _loss_chunks(*inputs, wanted=ctx.needs_input_grad[:2])
        ctx.mark_non_differentiable(*losses[1:])
        ctx.weight_dtype, ctx.ignored = inputs[1].dtype, inputs[7]
        ctx.save_for_backward(inputs[4], *grads)
        return losses

    @staticmethod
    def backward(ctx, grad_M, *_):
        labels_M, grad_hidden_MD, grad_weight_VD = ctx.saved_tensors
        scaled = scale_grads(
            grad_M, labels_M, ctx.ignored, grad_hidden_MD, grad_weight_VD, ctx.weight_dtype,
            uniform_grad=True,
        )  # fmt: skip
        return *scaled, *(None,) * 7


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
    forms=(_loss, _loss_and_grad),
    registers={"distillation.distillation": Registers(128, 128, 128, 128, 126)},
    launches={"linear_distillation": 9},
)
