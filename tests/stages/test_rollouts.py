"""Answers of a policy: what their tokens follow from, how likely they were, turns with tools."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from labelled_answers import engine_of
from small_engines import whole
from small_models import EXPERTS
from small_rollouts import ENDS, NEW, PROMPTS, build_policy, rollouts_of

from minimind.data.prompt_format import Prompt
from minimind.errors import TrainingError
from minimind.inference.cpu_decode import CpuDecode
from minimind.model.transformer import Transformer
from minimind.stages.policy_loss import rollout_log_probs
from minimind.stages.rollout_batch import build_rollout_batch
from minimind.stages.trajectory import Trajectory


def answer(
    policy: Transformer,
    prompts: Sequence[Prompt] = PROMPTS,
    number: int = 3,
    seeded: Sequence[int | str] = (0,),
    greedy: bool = False,
    **options: Any,
) -> list[Trajectory]:
    return rollouts_of(**options).run(engine_of(policy), prompts, number, seeded, greedy=greedy)


def by_place(trajectories: Sequence[Trajectory]) -> dict[tuple[int, int], list[int]]:
    return {(one.prompt.unit, one.index): one.ids for one in trajectories}


def test_company_changes_no_token(decoding: str):
    """Alone, with others, in another order, in small batches: as on any number of ranks."""
    policy = build_policy(ends=8.0)
    rollouts = rollouts_of()
    together = by_place(rollouts.run(engine_of(policy), PROMPTS, 3, (0,)))
    assert rollouts._batch_engine is not None
    is_compiled = isinstance(rollouts._batch_engine._runner._cpu_decode, CpuDecode)
    assert is_compiled == (decoding == "C++")
    assert len(together) == 15
    assert len({len(ids) for ids in together.values()}) > 2, "some end before others"
    assert by_place(answer(policy, PROMPTS[::-1])) == together
    for size in (1, 4):
        assert by_place(answer(policy, rollout_batch=size)) == together
    for prompt in PROMPTS:
        alone = by_place(answer(policy, [prompt]))
        assert alone == {place: together[place] for place in alone}
    first = by_place(answer(policy, number=1))
    assert first == {place: together[place] for place in first}, "with fewer beside it"


def test_answers_stand_side_by_side_by_prompt():
    found = answer(build_policy(), PROMPTS[3:1:-1], number=2)
    assert [(one.prompt.unit, one.index) for one in found] == [(3, 0), (3, 1), (2, 0), (2, 1)]
    assert [one.prompt for one in found] == [PROMPTS[3]] * 2 + [PROMPTS[2]] * 2
    assert answer(build_policy(), []) == []


def test_tokens_follow_from_run_step_prompt_and_answer():
    policy = build_policy()
    found = by_place(answer(policy, seeded=(4,)))
    assert len({tuple(ids) for ids in found.values()}) == 15, "all answers differ"
    assert by_place(answer(policy, seeded=(4,))) == found
    for other in (answer(policy, seeded=(5,)), answer(policy, seeded=(4,), seed=1)):
        assert all(found[place] != ids for place, ids in by_place(other).items())
    # The same question as another row of the data is another prompt.
    twins = [dataclasses.replace(PROMPTS[0], unit=unit) for unit in (0, 7)]
    one, other = answer(policy, twins, number=1)
    assert one.ids != other.ids


def test_greedy_takes_the_likeliest_token_whatever_the_seed():
    policy = build_policy(ends=8.0)
    found = answer(policy, number=1, greedy=True, temperature=0.7)
    assert by_place(answer(policy, number=1, greedy=True, seeded=("other",), seed=9)) == by_place(
        found
    )
    for one in found:
        logits_TV = whole(policy, [*one.prompt.ids, *one.ids[:-1]])[len(one.prompt.ids) - 1 :]
        assert logits_TV.argmax(-1).tolist() == one.ids


def test_an_answer_that_ends_holds_its_end_and_one_that_does_not_is_cut():
    found = [one for ends in (8.0, 0.0) for one in answer(build_policy(ends=ends))]
    for one in found:
        assert len(one.log_probs) == len(one.ids) == one.num_made <= NEW
        assert all(value is not None and value <= 0 for value in one.log_probs)
        assert one.is_cut == (one.ids[-1] not in ENDS)
        assert not {*ENDS} & {*one.ids[:-1]}
        assert one.is_cut <= (len(one.ids) == NEW)
        (turn,) = one.turns
        assert turn["role"] == "assistant"
        assert "<|im_end|>" not in turn["content"]
        rollout = one.to_rollout()
        assert (rollout.is_cut, rollout.num_tokens) == (one.is_cut, len(one.ids))
        assert rollout.prompt == one.prompt.row["conversations"][0]["content"]
    assert {one.is_cut for one in found} == {True, False}


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.6}, {"temperature": 1.4, "top_k": 30, "top_p": 0.9}],
    ids=["1", "0.6", "1.4, filtered"],
)
@pytest.mark.parametrize("changes", [{}, EXPERTS[0]], ids=["dense", "experts"])
def test_log_probabilities_are_those_of_training(
    decoding: str, changes: dict[str, Any], options: dict[str, Any]
):
    """What filters leave out counts: the trainer knows none."""
    policy = build_policy(ends=8.0, **changes)
    found = answer(policy, number=2, **options)
    batch = build_rollout_batch(found, counts_tokens=False)
    assert batch.targets_R.tolist() == [token for one in found for token in one.ids]
    log_prob_R = rollout_log_probs(policy, batch, options.get("temperature", 1.0))
    torch.testing.assert_close(log_prob_R, batch.sampled_R, atol=1e-5, rtol=1e-5)


def test_new_weights_answer_anew(decoding: str):
    policy, other = build_policy(0), build_policy(1)
    rollouts = rollouts_of()
    engine = engine_of(policy)
    before = by_place(rollouts.run(engine, PROMPTS, 2, (0,)))
    for parameter, new in zip(policy.parameters(), other.parameters(), strict=True):
        parameter.data.copy_(new.data)
    after = by_place(rollouts.run(engine, PROMPTS, 2, (0,)))
    assert after == by_place(answer(other, number=2))
    assert all(after[place] != ids for place, ids in before.items())


def test_logits_that_are_no_numbers_end_the_run():
    policy = build_policy()
    with torch.no_grad():
        policy.norm.weight[0] = float("nan")
    with pytest.raises(TrainingError, match=r"What is 6 plus 9.*its logits are not finite"):
        answer(policy, PROMPTS[:1])


def test_a_longer_limit_goes_on_with_the_same_tokens():
    policy = build_policy()
    short, long = (by_place(answer(policy, max_new_tokens=n)) for n in (5, NEW))
    assert all(len(ids) == 5 for ids in short.values())
    assert short == {place: ids[:5] for place, ids in long.items()}
