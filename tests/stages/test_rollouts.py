"""Answers of a policy: what their tokens follow from, how likely they were, turns with tools."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from labelled_answers import engine_of
from small_engines import tokenizer, whole
from small_models import EXPERTS
from small_rollouts import SAID_LOG_PROB, Script, build_policy, build_prompt, encode
from torch import nn

from minimind.data.chat_encoding import Chat, ChatEncoder
from minimind.data.prompt_format import Prompt
from minimind.errors import TrainingError
from minimind.inference.batch_engine import BatchEngine
from minimind.inference.cpu_decode import CpuDecode
from minimind.inference.request import GenerationRequest
from minimind.model.transformer import Transformer
from minimind.rewards.tools import ToolBox
from minimind.stages.policy_loss import rollout_log_probs
from minimind.stages.rollout_batch import build_rollout_batch
from minimind.stages.rollout_recipe import RolloutRecipe
from minimind.stages.rollouts import RolloutEngine
from minimind.stages.trajectory import Trajectory

NEW = 24
PROMPTS = [build_prompt(unit) for unit in range(5)]
END = tokenizer().eos_id
ENDS = (END, tokenizer().pad_id)


def rollouts_of(toolbox: ToolBox | None = None, **options: Any) -> RolloutEngine:
    sizes: dict[str, Any] = {"seq_len": 128, "max_new_tokens": NEW}
    recipe = RolloutRecipe(**{**sizes, **options})
    return RolloutEngine(recipe, tokenizer(), toolbox, _itself)


def _itself(module: nn.Module) -> Transformer:
    assert isinstance(module, Transformer)
    return module


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


# Turns with tools. What the policy says is written by hand.

SUM = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "37 + 48"}}\n</tool_call>'
RESULT = {"role": "tool", "content": "85"}


def said(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


@pytest.fixture(scope="module")
def tools() -> Iterator[ToolBox]:
    named = {"calculator": "calculator", "lookup": "lookup"}
    box = ToolBox(named, num_workers=1, timeout_s=30.0)
    yield box
    box.close()


Talk = Callable[..., tuple[list[Trajectory], Script]]


@pytest.fixture
def talk(tools: ToolBox, monkeypatch: pytest.MonkeyPatch) -> Talk:
    """talk(*turns) -> what becomes of one answer each to the prompts, and who was asked."""

    def talk(
        *turns: Any, prompts: Sequence[Prompt] = PROMPTS[:1], number: int = 1, **options: Any
    ) -> tuple[list[Trajectory], Script]:
        script = Script(*turns)
        monkeypatch.setattr(BatchEngine, "generate", script)
        options = {"tools": {"calculator": "calculator"}, "max_turns": 3, **options}
        options = {"seq_len": 250, "max_new_tokens": 200, **options}
        rollouts = rollouts_of(tools if options["tools"] else None, **options)
        return rollouts.run(engine_of(build_policy()), prompts, number, (0,)), script

    return talk


@pytest.mark.parametrize("thinking", [False, True])
def test_a_tools_result_comes_between_two_turns_of_the_policy(talk: Talk, thinking: bool):
    first, last = (SUM, "It is 85.")
    if thinking:
        first, last = (f"{i}\n</think>\n\n{text}" for i, text in enumerate((SUM, last)))
    prompt = build_prompt(0, thinking=thinking)
    (one,), script = talk([first], [last], prompts=[prompt], thinking=thinking)
    opened = "<think>\n" if thinking else ""
    assert one.turns == [said(opened + first), RESULT, said(opened + last)]
    # The ids of the whole conversation, as it is rendered when somebody is trained on it.
    encoder = ChatEncoder(tokenizer())
    chat = Chat([*one.messages, *one.turns[:2]])
    assert [*prompt.ids, *one.ids] == [
        *encoder.prompt_ids(chat, thinking), *encode(last), END,
    ]  # fmt: skip
    made = [len(encode(first)) + 1, len(encode(last)) + 1]
    results = len(one.ids) - sum(made)
    assert one.log_probs == (
        [SAID_LOG_PROB] * made[0] + [None] * results + [SAID_LOG_PROB] * made[1]
    )
    assert (one.num_made, one.is_cut) == (sum(made), False)
    asked = script.asked[1][0]
    assert [*asked.prompt_ids] == [*prompt.ids, *one.ids[: -made[1]]]
    assert asked.params.max_new_tokens == 200 - made[0] - results
    rollout = one.to_rollout()
    assert (rollout.answer, rollout.num_tokens) == ("It is 85.", sum(made))
    assert rollout.completion == opened + last
    assert rollout.turns == one.turns


def test_only_the_policys_own_tokens_are_learned_from(talk: Talk):
    found, _ = talk([SUM, "Five."], ["It is 85."], prompts=PROMPTS[:2])
    batch = build_rollout_batch(found, counts_tokens=True)
    own = [encode(SUM), encode("It is 85."), encode("Five.")]
    assert batch.targets_R.tolist() == [token for ids in own for token in [*ids, END]]
    assert batch.sample_R.tolist() == [0] * (len(own[0]) + len(own[1]) + 2) + [1] * (
        len(own[2]) + 1
    )


def test_each_turn_has_a_seed_of_its_own(talk: Talk):
    _, script = talk([SUM] * 4, [SUM] * 4, ["It is 85."] * 4, prompts=PROMPTS[:2], number=2)
    seeds = [request.params.seed for turn in script.asked for request in turn]
    assert len(set(seeds)) == 12


def test_the_first_answers_to_all_prompts_are_asked_for_first(talk: Talk):
    _, script = talk(["a"] * 6, prompts=PROMPTS[:3], number=2)
    assert [tuple(one.prompt_ids) for one in script.asked[0]] == [
        prompt.ids for _ in range(2) for prompt in PROMPTS[:3]
    ]


def test_answers_that_call_nothing_have_no_further_turn(talk: Talk):
    def second(request: GenerationRequest) -> str:
        return "It is 85."

    found, script = talk(["a", SUM, "b"], second, prompts=PROMPTS[:3])
    assert [len(turn) for turn in script.asked] == [3, 1]
    assert [len(one.turns) for one in found] == [1, 3, 1]
    assert found[1].turns[-1] == said("It is 85.")


@pytest.mark.parametrize(
    ("text", "results"),
    [
        (f"{SUM}\n{SUM.replace('37', '2')}", ["85", "50"]),
        ("<tool_call>\n37 + 48\n</tool_call>", ["error: no JSON object with a name and arguments"]),
        ("<tool_call>\n{}", ["error: no JSON object with a name and arguments"]),
        (
            SUM.replace("calculator", "calculater"),
            ["error: no tool calculater (did you mean calculator?)"],
        ),
        (SUM.replace("37 + 48", "1/0"), ["error: division by zero"]),
        (f"{SUM}<tool_call>", ["85", "error: no JSON object with a name and arguments"]),
    ],
    ids=["two", "no JSON", "not closed", "unknown", "an error", "one of two"],
)
def test_what_the_policy_is_told(talk: Talk, text: str, results: list[str]):
    (one,), _ = talk([text], ["well"])
    assert one.turns[1:] == [*({"role": "tool", "content": r} for r in results), said("well")]
    shown = tokenizer().decode(
        [i for i, p in zip(one.ids, one.log_probs, strict=True) if p is None], False
    )
    for result in results:
        assert f"<tool_response>\n{result}\n</tool_response>" in shown


def test_a_result_that_leaves_no_token_is_not_shown(talk: Talk):
    """The answer ends where it called, and a limit has ended it."""
    made = len(encode(SUM)) + 1
    behind = len(ChatEncoder(tokenizer()).result_ids(["85"]))
    for limit, turns in ((made + behind, 1), (made + behind + 1, 3)):
        (one,), script = talk([SUM], ["x"], max_new_tokens=limit)
        assert (len(one.turns), one.is_cut) == (turns, turns == 1)
        assert len(one.ids) <= limit or turns == 3
        if turns == 1:
            assert len(one.ids) == one.num_made == made
        else:
            assert script.asked[1][0].params.max_new_tokens == 1


def test_no_more_turns_than_were_asked_for(talk: Talk):
    (one,), script = talk([SUM], [SUM], [SUM], max_turns=2)
    assert len(script.asked) == 2
    assert one.turns == [said(SUM), RESULT, said(SUM)]


def test_an_answer_that_a_limit_cut_calls_nothing(talk: Talk):
    (one,), script = talk([(SUM, "length")], ["x"])
    assert one.turns == [said(SUM)]
    assert one.is_cut
    assert len(script.asked) == 1
    found, _ = talk([SUM], [("It is", "length")])
    assert found[0].is_cut


def test_without_tools_a_call_is_text(talk: Talk):
    (one,), _ = talk([SUM], tools={}, max_turns=1)
    assert one.turns == [said(SUM)]
    assert not one.is_cut


@pytest.mark.parametrize("content", ["Be brief.", ""])
def test_rewards_see_the_tools_of_a_row(talk: Talk, content: str):
    schema = [{"name": "calculator", "parameters": {"expression": "string"}}]
    system = {"role": "system", "content": content, "tools": schema}
    turns = [system, {"role": "user", "content": "37 + 48?"}]
    prompt = build_prompt(0, conversations=turns, gt=85)
    (one,), _ = talk(["85"], prompts=[prompt])
    rollout = one.to_rollout()
    assert rollout.messages[0]["tools"] == schema
    assert [turn["role"] for turn in rollout.messages] == ["system", "user"]
    assert (rollout.prompt, rollout.gt, rollout.row) == ("37 + 48?", 85, prompt.row)
