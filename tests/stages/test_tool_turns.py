"""Rollouts whose turns call tools. What the policy says is written by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from labelled_answers import engine_of
from small_engines import tokenizer
from small_rollouts import (
    END,
    PROMPTS,
    SAID_LOG_PROB,
    Script,
    build_policy,
    build_prompt,
    encode,
    rollouts_of,
)

from minimind.data.chat_encoding import Chat, ChatEncoder
from minimind.data.prompt_format import Prompt
from minimind.inference.batch_engine import BatchEngine
from minimind.inference.request import GenerationRequest
from minimind.rewards.tools import ToolBox
from minimind.stages.rollout_batch import build_rollout_batch
from minimind.stages.trajectory import Trajectory

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
