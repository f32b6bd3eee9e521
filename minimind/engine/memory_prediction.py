"""What a rank will hold at its peak, by component, before anything runs.

Counted, not fitted: each tensor that the model saves for its backward and each buffer that
DeepSpeed 0.19 makes. A step has three moments that can be the peak: the first backward product,
when all activations are alive; the end of the backward, when all gradients are; the update.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from minimind.engine.activation_memory import (
    Workload,
    attention_mask,
    feed_forward_gradient,
    logits_chunk,
    saved_activations,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPrediction:
    """Bytes of one rank's tensors on its device at the peak of a step."""

    weights: int
    """In the dtype of the products."""
    helpers: int
    """Weights of a frozen model beside the trained one, such as a teacher."""
    masters: int
    optimizer: int
    gradients: int
    """Sums of earlier micro-batches, this one's, and copies that the update makes."""
    buckets: int
    """Where gradients (in ZeRO-3 weights too) are gathered for communication."""
    activations: int
    logits_chunk: int
    """The output layer's: logits of a chunk, and the head's gradient."""
    attention_mask: int
    batches: int
    """Tokens and labels of the step's micro-batches."""

    @property
    def peak_bytes(self) -> int:
        return sum(getattr(self, part.name) for part in fields(self))

    def to_dict(self) -> dict[str, int]:
        """By component, then their sum."""
        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        return {**parts, "peak_bytes": self.peak_bytes}


def predict_memory(workload: Workload) -> MemoryPrediction:
    """The largest of a step's moments."""
    return max(_moments(workload), key=lambda moment: moment.peak_bytes)


def _moments(work: Workload) -> Iterable[MemoryPrediction]:
    trained, frozen = work.recipe.count_weights(work.config)
    masters, optimizer = _states(work, trained)
    gathered = trained + frozen if work.zero_stage == 3 and work.world_size > 1 else 0
    states: dict[str, int] = {
        "weights": work.size * ((trained + frozen) // _share(work, 3) + gathered),
        "helpers": work.size * work.recipe.count_helper_weights(),
        "masters": 0 if work.offloads_optimizer else masters,
        "optimizer": 0 if work.offloads_optimizer else optimizer,
        "attention_mask": attention_mask(work),
        "batches": 26 * work.tokens * work.accumulation,
    }
    buckets, gradients = _buckets(work), _Gradients.of(work, trained)
    head = work.config.vocab_size * work.config.hidden_size * (not frozen)
    saved, width = saved_activations(work), work.tokens * work.size * work.config.hidden_size
    # Hidden states and their gradient, beside everything that was saved.
    yield MemoryPrediction(
        **states,
        gradients=gradients.carried,
        buckets=buckets.kept,
        activations=saved + 2 * width,
        logits_chunk=logits_chunk(work) + 4 * head,
    )
    # The head's gradient, scaled and cast.
    yield MemoryPrediction(
        **states,
        gradients=gradients.carried,
        buckets=buckets.in_backward,
        activations=saved + 2 * width,
        logits_chunk=(8 + (work.size if work.size < 4 else 0)) * head,
    )
    # The last block's feed-forward: gate and up are still there when their gradient is.
    yield MemoryPrediction(
        **states,
        gradients=gradients.carried,
        buckets=buckets.in_backward,
        activations=saved + feed_forward_gradient(work),
        logits_chunk=work.size * head,
    )
    yield MemoryPrediction(
        **states,
        gradients=gradients.at_the_end,
        buckets=buckets.in_backward,
        activations=0,
        logits_chunk=0,
    )
    yield MemoryPrediction(
        **states,
        gradients=gradients.in_update,
        buckets=buckets.kept,
        activations=0,
        logits_chunk=0,
    )


def _share(work: Workload, first_stage: int) -> int:
    """Over how many ranks ZeRO divides what it divides from `first_stage` on."""
    return work.world_size if work.zero_stage >= first_stage else 1


def _states(work: Workload, trained: int) -> tuple[int, int]:
    """fp32 masters (in fp32 too, from stage 1 on) and AdamW's two moments."""
    has_masters = work.size == 2 or work.zero_stage > 0
    return has_masters * 4 * trained // _share(work, 1), 8 * trained // _share(work, 1)


@dataclass(frozen=True, slots=True)
class _Buckets:
    kept: int
    in_backward: int


def _buckets(work: Workload) -> _Buckets:
    """Allocated whole, however little is trained; two of them where communication overlaps. Stage 3
    keeps its own, stages 1 and 2 make theirs anew in each backward."""
    if work.zero_stage == 0:
        return _Buckets(0, 0)
    elements = int(work.zero.get("reduce_bucket_size", 500_000_000))
    one = work.size * elements * (2 if work.zero.get("overlap_comm") else 1)
    if work.zero_stage == 3:
        return _Buckets(one, one)
    # Stage 1 leaves sums in their bucket until the step's last micro-batch.
    return _Buckets(one if work.zero_stage == 1 and work.accumulation > 1 else 0, one)


@dataclass(frozen=True, slots=True)
class _Gradients:
    carried: int
    """From micro-batch to micro-batch."""
    at_the_end: int
    """Of a backward: this micro-batch's beside the sums."""
    in_update: int

    @classmethod
    def of(cls, work: Workload, trained: int) -> _Gradients:
        whole, part = work.size * trained, work.size * trained // work.world_size
        is_wide = (work.ds_config.get("data_types") or {}).get("grad_accum_dtype") == "fp32"
        wide = 4 * trained // work.world_size
        adds_up = work.accumulation > 1
        # In 16 bits the update casts what it was given.
        cast = wide if work.size == 2 else 0
        if work.offloads_optimizer:
            return cls(0, whole + part, 0)
        match work.zero_stage:
            case 0:
                return cls(adds_up * whole, 2 * whole, whole + (4 * trained if cast else 0))
            case 1:
                return cls(adds_up * whole, 2 * whole, whole + part + cast)
            case 2 if is_wide and work.size == 2:
                return cls(adds_up * wide, wide + whole, wide)
            case 2:
                return cls(adds_up * part, (1 + adds_up) * part, 2 * part + cast)
            case _:
                kept = wide if is_wide else part
                return cls(kept, kept + whole + part, kept + wide)
