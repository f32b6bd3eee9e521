"""What a rank will hold at its peak, by component, before anything runs.

Counted, not fitted: each tensor that the model saves for its backward and each buffer that
DeepSpeed 0.19 makes. A step has a few moments that can be the peak: the first backward product,
when all activations are alive; the first bucket that is full and reduced, when room is made for all
of a rank's gradients and most activations are still there; the end of the backward; the update.
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
    rollout_cache: int
    """Keys and values of the answers that a step generates."""
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
    whole = work.size * trained
    kept = work.size * ((trained + frozen) // _share(work, 3))
    gathered = trained + frozen if work.zero_stage == 3 and work.world_size > 1 else 0
    held: dict[str, int] = {
        "helpers": work.size * work.recipe.count_helper_weights(work.config),
        "rollout_cache": work.size * _cached_numbers(work),
        "masters": 0 if work.offloads_optimizer else masters,
        "optimizer": 0 if work.offloads_optimizer else optimizer,
        "attention_mask": attention_mask(work),
        "batches": 26 * work.tokens * work.accumulation,
    }
    states = {**held, "weights": kept + work.size * gathered}
    head = work.config.vocab_size * work.config.hidden_size * (not frozen)
    largest = 0 if frozen else _largest_weight(work)
    buckets, gradients = _buckets(work), _Gradients.of(work, trained, largest)
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
    if work.zero_stage < 2:
        # Buckets were filled by then, with gradients that are in them alone.
        yield MemoryPrediction(
            **states, gradients=gradients.reduced, buckets=0, activations=0, logits_chunk=0
        )
    else:
        yield from (
            MemoryPrediction(
                **states,
                gradients=room + work.size * largest,
                buckets=buckets.in_backward + copied,
                activations=int(saved * still),
                logits_chunk=work.size * head,
            )
            for room, copied, still in _reductions(
                gradients, max(buckets.one, work.size * largest), whole, work.size * head
            )
        )
    yield MemoryPrediction(
        **held,
        weights=kept,
        gradients=gradients.in_update,
        buckets=buckets.kept if work.zero_stage == 3 else 0,
        activations=0,
        logits_chunk=0,
    )


def _reductions(
    gradients: _Gradients, bucket: int, whole: int, head: int
) -> Iterable[tuple[int, int, float]]:
    """Bytes of gradients, bytes that are copied, and the share of activations that is still there,
    when the first full bucket is reduced and when the second is; a weight that is larger than a
    bucket is one of its own. Blocks are taken as equals."""
    share = min(1.0, bucket / max(1, whole - head))
    copied = gradients.copies * min(bucket, whole)
    if gradients.copies_first:
        yield gradients.carried, copied, 1 - share
        yield gradients.reduced, 0, 1 - share
    else:
        yield gradients.reduced, copied, 1 - share
    if share < 1:
        yield gradients.reduced, copied, max(0.0, 1 - 2 * share)


def _cached_numbers(work: Workload) -> int:
    config = work.config
    a_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return a_token * work.recipe.count_cached_tokens(work.device_kind)


def _largest_weight(work: Workload) -> int:
    """Elements of the feed-forward's gate and up, which are one, as are those of all experts."""
    config = work.config
    if config.num_experts:
        return 2 * config.num_experts * config.moe_intermediate_size * config.hidden_size
    return 2 * config.intermediate_size * config.hidden_size


def _share(work: Workload, first_stage: int) -> int:
    """Over how many ranks ZeRO divides what it divides from `first_stage` on."""
    return work.world_size if work.zero_stage >= first_stage else 1


def _states(work: Workload, trained: int) -> tuple[int, int]:
    """fp32 masters (in fp32 too, from stage 1 on) and AdamW's two moments."""
    has_masters = work.size == 2 or work.zero_stage > 0
    return has_masters * 4 * trained // _share(work, 1), 8 * trained // _share(work, 1)


def _is_wide(work: Workload) -> bool:
    """Whether gradients of 16 bits are summed in 32."""
    kinds = work.ds_config.get("data_types") or {}
    return work.size == 2 and kinds.get("grad_accum_dtype") == "fp32"


def _sums_in_one(work: Workload) -> bool:
    """Stage 1 keeps its sums in 32 bits in one tensor, which is reduced as it is."""
    return work.zero_stage == 1 and _is_wide(work)


@dataclass(frozen=True, slots=True)
class _Buckets:
    one: int
    kept: int
    in_backward: int


def _buckets(work: Workload) -> _Buckets:
    """Allocated whole, however little is trained; two of them where communication overlaps. Stage 3
    keeps its own, stages 1 and 2 make theirs anew in each backward."""
    if work.zero_stage == 0 or _sums_in_one(work):
        return _Buckets(0, 0, 0)
    one = work.size * int(work.zero.get("reduce_bucket_size", 500_000_000))
    both = one * (2 if work.zero.get("overlap_comm") else 1)
    if work.zero_stage == 3:
        return _Buckets(one, both, both)
    # Stage 1 leaves sums in their bucket until the step's last micro-batch.
    return _Buckets(one, both if work.zero_stage == 1 and work.accumulation > 1 else 0, both)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gradients:
    carried: int
    """From micro-batch to micro-batch."""
    reduced: int
    """Once some are reduced: room for all of this micro-batch's that the rank keeps, beside the
    sums."""
    in_update: int
    copies: int = 0
    """Of a full bucket, which reducing it makes."""
    copies_first: bool = False
    """Before there is room for what is reduced."""

    @classmethod
    def of(cls, work: Workload, trained: int, largest: int) -> _Gradients:
        whole, part = work.size * trained, work.size * trained // work.world_size
        wide = 4 * trained // work.world_size
        is_cast = work.size == 2 and work.ds_config.get("communication_data_type") == "fp32"
        # A bucket that is reduced in 32 bits is copied as it is, then cast.
        copied = 3 if is_cast else 1
        adds_up = work.accumulation > 1
        # In 16 bits the update casts what it was given.
        cast = wide if work.size == 2 else 0
        if work.offloads_optimizer:
            # Only a gradient on its way to the host.
            one = work.size * max(largest, work.config.vocab_size * work.config.hidden_size)
            return cls(carried=one, reduced=one, in_update=one, copies=int(work.world_size > 1))
        match work.zero_stage:
            case 0:
                # In 32 bits in any precision, and laid flat where it is reduced.
                sums = 4 * trained
                return cls(carried=adds_up * sums, reduced=2 * sums, in_update=sums)
            case 1 if _sums_in_one(work):
                sums = 4 * trained
                return cls(carried=sums, reduced=sums, in_update=sums + 8 * largest)
            case 1:
                in_update = 2 * part + cast
                return cls(carried=adds_up * whole, reduced=whole + part, in_update=in_update)
            case 2 if _is_wide(work):
                # Sums in 32 bits, into which buckets are added, cast where they are not yet; their
                # norm is taken in 64 bits, a weight at a time.
                in_update = wide + 8 * largest
                return cls(
                    carried=adds_up * wide, reduced=wide + (0 if is_cast else 4 * largest),
                    in_update=in_update, copies=copied,
                )  # fmt: skip
            case 2:
                return cls(
                    carried=adds_up * part, reduced=(1 + adds_up) * part,
                    in_update=2 * part + cast, copies=copied * (work.world_size > 1),
                    copies_first=True,
                )  # fmt: skip
            case _:
                kept = wide if _is_wide(work) else part
                # What is scattered, and where it is reduced in 32 bits a cast of the bucket before.
                # Gloo scatters a copy of what it is given.
                copies = (2 if work.device_kind == "cpu" else 1) * (2 if is_cast else 1) + is_cast
                return cls(
                    carried=kept, reduced=kept, in_update=kept + wide, copies=copies,
                )  # fmt: skip
