"""Computes the divergence of a student from its teacher over the vocabulary, in chunks of tokens.

    p = softmax(teacher_hidden · teacher_weightᵀ / T),  q = softmax(hidden · weightᵀ / T)
    loss_t = Σ_v p_v · (log p_v - log q_v)

∂loss_t/∂z_t = (q - p) / T with z the student's logits. Hinton et al., "Distilling the Knowledge in
a Neural Network", 2015; its factor T² is left to the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from . import backend
from .form import Form
from .linear_loss import build_head
from .op import BOTH, IGNORED, Case, Function, Goal, Inputs, Op, Registers, Rival
from .token_chunks import EarlyGrads, TokenChunks, rows_worth_gathering, scatter_rows


def linear_kl_reference(
    hidden_MD: Tensor,
    weight_VD: Tensor,
    teacher_hidden_ME: Tensor,
    teacher_weight_VE: Tensor,
    temperature: float = 1.0,
    is_counted_M: Tensor | None = None,
) -> Tensor:
    """Computes each token's KL(teacher ‖ student) in PyTorch, with all logits of both models at
    once: loss_M, 0 where not counted, in fp64 for fp64 hidden states, else in fp32."""
    wide = torch.promote_types(hidden_MD.dtype, torch.float32)
    log_prob_MV, teacher_log_prob_MV = (
        functional.log_softmax(functional.linear(h, w).to(wide) / temperature, dim=-1)
        for h, w in ((hidden_MD, weight_VD), (teacher_hidden_ME, teacher_weight_VE))
    )
    loss_M = (teacher_log_prob_MV.exp() * (teacher_log_prob_MV - log_prob_MV)).sum(-1)
    return loss_M if is_counted_M is None else loss_M * is_counted_M


def linear_kl(
    hidden_MD: Tensor,
    weight_VD: Tensor,
    teacher_hidden_ME: Tensor,
    teacher_weight_VE: Tensor,
    temperature: float = 1.0,
    is_counted_M: Tensor | None = None,
    chunk_size: int | None = None,
    uniform_grad: bool = False,
) -> Tensor:
    """Computes KL(teacher ‖ student) of each token at a temperature: loss_M fp32, 0 where not
    counted.

    hidden_MD and weight_VD are of one dtype, fp32, fp16 or bf16. The teacher's tensors are of one
    dtype too; its width may differ from the student's, its vocabulary may not. is_counted_M [M] is
    bool. The teacher receives no gradient. Chunks, the use of fp32 and `uniform_grad` are as in
    `linear_cross_entropy`.

    Raises ValueError where shapes do not agree or the temperature is not positive.
    """
    inputs = (hidden_MD, weight_VD, teacher_hidden_ME.detach(), teacher_weight_VE.detach())
    check_teacher("linear_kl", *inputs, temperature)
    num_tokens = hidden_MD.shape[0]
    if is_counted_M is not None and is_counted_M.shape != (num_tokens,):
        raise ValueError(
            f"linear_kl takes is_counted [M] for hidden [M, D], not {tuple(is_counted_M.shape)} "
            f"for {tuple(hidden_MD.shape)}"
        )
    in_triton = backend.use_triton("linear_kl", *inputs)
    if torch.compiler.is_compiling() and not in_triton:
        return linear_kl_reference(*inputs, temperature, is_counted_M)
    if is_counted_M is None:
        is_counted_M = torch.ones(num_tokens, dtype=torch.bool, device=hidden_MD.device)
    rows_R = rows_worth_gathering(is_counted_M, False, in_triton)
    if rows_R is not None:
        loss_R = linear_kl(
            hidden_MD.index_select(0, rows_R), weight_VD, teacher_hidden_ME.index_select(0, rows_R),
            teacher_weight_VE, temperature, None, chunk_size, uniform_grad,
        )  # fmt: skip
        return scatter_rows(loss_R, rows_R, num_tokens)
    options = (is_counted_M, temperature, chunk_size)
    if torch.is_grad_enabled() and (hidden_MD.requires_grad or weight_VD.requires_grad):
        if uniform_grad or not weight_VD.requires_grad:
            return _EarlyKL.apply(*inputs, *options, uniform_grad)
        return _KL.apply(*inputs, *options)
    return _loss_chunks(*inputs, *options)[0]


def check_teacher(
    op: str,
    hidden_MD: Tensor,
    weight_VD: Tensor,
    teacher_hidden_ME: Tensor,
    teacher_weight_VE: Tensor,
    temperature: float,
) -> None:
    """Raises ValueError where a student's and a teacher's shapes do not agree."""
    if weight_VD.shape != (teacher_weight_VE.shape[0], hidden_MD.shape[1]) or (
        teacher_hidden_ME.shape != (hidden_MD.shape[0], teacher_weight_VE.shape[1])
    ):
        raise ValueError(
            f"{op} takes hidden [M, D], weight [V, D] and the teacher's [M, E] and [V, E], not "
            f"{tuple(hidden_MD.shape)}, {tuple(weight_VD.shape)}, "
            f"{tuple(teacher_hidden_ME.shape)} and {tuple(teacher_weight_VE.shape)}"
        )
    if temperature <= 0:
        raise ValueError(f"{op} takes a temperature above 0, not {temperature}")


def log_softmax(logits_CV: Tensor, temperature: float) -> Tensor:
    """Gives the logarithms of softmax(z / T), in fp32 at least."""
    wide_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
    return functional.log_softmax(wide_CV / temperature, dim=-1)


def _kl_body(
    logits_CV: Tensor, teacher_logits_CV: Tensor, factor_C: Tensor, loss_C: Tensor, *,
    temperature: float, with_grad: bool,
) -> None:  # fmt: skip
    """Writes the divergences times `factor`; with `with_grad`, overwrites the student's logits with
    the gradient of their sum."""
    log_prob_CV = log_softmax(logits_CV, temperature)
    teacher_log_prob_CV = log_softmax(teacher_logits_CV, temperature)
    teacher_prob_CV = teacher_log_prob_CV.exp()
    divergence_C = (teacher_prob_CV * (teacher_log_prob_CV - log_prob_CV)).sum(dim=-1)
    loss_C.copy_(divergence_C * factor_C)
    if with_grad:
        gap_CV = log_prob_CV.exp() - teacher_prob_CV
        logits_CV.copy_(gap_CV * (factor_C / temperature).unsqueeze(1))


_kl = Form("kl:kl", _kl_body, num_row_tensors=4, overwrites=("logits_CV", "loss_C"))


def _loss_chunks(
    hidden_MD: Tensor,
    weight_VD: Tensor,
    teacher_hidden_ME: Tensor,
    teacher_weight_VE: Tensor,
    factor_M: Tensor,
    temperature: float,
    chunk_size: int | None,
    *,
    wanted: tuple[bool, bool] = (False, False),
) -> tuple[Tensor, TokenChunks]:
    """Gives the divergences times `factor`, and the TokenChunks with the gradients of their sum."""
    chunks = TokenChunks(hidden_MD, weight_VD, chunk_size, wanted)
    teacher = TokenChunks(teacher_hidden_ME, teacher_weight_VE, chunk_size)
    loss_M = hidden_MD.new_empty(hidden_MD.shape[:1], dtype=chunks.loss_dtype)
    factor_M = factor_M.to(chunks.loss_dtype)
    for rows in chunks.slices:
        logits_CV = chunks.logits(rows)
        _kl(
            logits_CV, teacher.logits(rows), factor_M[rows], loss_M[rows],
            generated=chunks.generated, temperature=temperature, with_grad=any(wanted),
        )  # fmt: skip
        chunks.add_grads(rows, logits_CV)
    return loss_M, chunks


class _KL(torch.autograd.Function):
    """Takes any gradient for each token: the backward pass makes both models' logits a second
    time."""

    @staticmethod
    def forward(ctx, *inputs):
        ctx.save_for_backward(*inputs[:5])
        ctx.options = inputs[5:]
        return _loss_chunks(*inputs)[0]

    @staticmethod
    def backward(ctx, grad_M):
        *tensors, is_counted_M = ctx.saved_tensors
        inputs = (*tensors, grad_M * is_counted_M, *ctx.options)
        _, chunks = _loss_chunks(*inputs, wanted=ctx.needs_input_grad[:2])
        return *chunks.grads(), *(None,) * 5


class _EarlyKL(EarlyGrads):
    @staticmethod
    def forward(ctx, *inputs):
        *arguments, uniform_grad = inputs
        loss_M, chunks = _loss_chunks(*arguments, wanted=ctx.needs_input_grad[:2])
        counted_M = inputs[4].view(torch.uint8)
        EarlyGrads.keep(ctx, chunks, counted_M, ignored=0, uniform_grad=uniform_grad)
        return loss_M


def build_teacher(inputs: Inputs, width: int | None) -> tuple[Tensor, Tensor]:
    """Builds a teacher's hidden states and head, as wide as the student's or `width`; no
    gradient."""
    width = width or inputs.sizes.hidden
    return inputs.rows(width).detach(), inputs.matrix(inputs.sizes.vocab, width).detach()


def _build(
    inputs: Inputs, *, ignored: str = "none", chunk_size: int | None = None,
    uniform_grad: bool = True, frozen: bool = False, teacher_width: int | None = None,
) -> Case:  # fmt: skip
    """Builds a case. With `frozen` the student's head has no gradient."""
    labels = inputs.labels(ignored)
    is_counted = None if ignored == "none" else labels != -100
    tensors, moved, product = build_head(inputs)
    tensors[1].requires_grad_(not frozen)
    teacher = build_teacher(inputs, teacher_width)

    def run(op: Callable[..., Tensor], **options: Any) -> Function:
        def call(h: Tensor, w: Tensor) -> Tensor:
            return op(h, w, *(t.to(h.dtype) for t in teacher), 1.5, is_counted, **options)

        return call

    return Case(
        "linear_kl", inputs.sizes,
        run(linear_kl, chunk_size=chunk_size, uniform_grad=uniform_grad), run(linear_kl_reference),
        tensors, 2 * moved, 0, 4 * product, 0, uniform_grad=uniform_grad,
        # A generalised Jensen-Shannon divergence, a mean over tokens; at beta 0 it is
        # KL(teacher ‖ student).
        rivals=(
            Rival(
                "liger", "liger_kernel.ops.fused_linear_jsd:LigerFusedLinearJSDFunction",
                lambda apply: lambda h, w: len(h) * apply(
                    h, w, *teacher, None, 0.0, -100, 1.5, torch.float32
                ),
                waits=True,
            ),
        ),
    )  # fmt: skip


LINEAR_KL = Op(
    linear_kl,
    linear_kl_reference,
    "Σ p·(log p - log q), p and q from h·Wᵀ / T",
    _build,
    tested={
        "tokens": (0, 1, 13),
        "ignored": tuple(IGNORED),
        "chunk_size": (None, 3),
        "uniform_grad frozen": ((False, False), (True, False), (False, True)),
        "teacher_width": (40,),
        "vocab": (101, 51),
        # Logits as far apart as a trained model's.
        "scale": (5.0,),
    },
    scales=(1e-3, 10.0),
    compiled_for=("V {vocab}",),
    forms=(_kl,),
    registers={"kl.kl": Registers(79, 79, 88, 81, 84)},
    launches={"linear_kl": 9},
    goals=(Goal("linear_kl", BOTH, {"minimind2-small": 850, "minimind2": 1200}),),
)
