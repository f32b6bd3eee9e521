"""Grammars: what they allow, what they refuse, and texts that they hold to a form."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest
from grammars import STEP, V, allowed, compiled
from small_engines import engine_of, request, tokenizer
from small_models import random_model, small_config

from minimind.inference.batch_engine import BatchEngine
from minimind.inference.grammar_masks import GrammarFailure, GrammarMasks
from minimind.inference.grammar_texts import (
    AnswerForm,
    ToolForm,
    choice_rules,
    json_rules,
    regex_rules,
)

ARGUMENT = {"properties": {"s": STEP}, "required": ["s"]}
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "name": {"enum": ["叶", "leaf", None]},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["name", "next"],
        }
    },
}


@pytest.fixture(scope="module")
def engine() -> BatchEngine:
    config = small_config(vocab_size=V, max_position_embeddings=512)
    return engine_of(random_model(config).eval(), max_batch=8, slot=400)


@pytest.mark.parametrize(
    ("choices", "prefix"),
    [
        (["yes", "no", "nor"], ""),
        (["yes", "no", "nor"], "n"),
        (["yes", "no", "nor"], "no"),
        (["塔恩的房子", "塔恩 lives", '\n{"a": 1}'], ""),
        (["塔恩的房子", "塔恩 lives", '\n{"a": 1}'], "塔"),
        (["<tool_call>", "</think>"], ""),
    ],
)
def test_the_allowed_tokens_are_those_whose_text_goes_on(choices: list[str], prefix: str) -> None:
    """Every token by its bytes; added tokens stand for no text."""
    texts = [choice.encode() for choice in choices]
    before = prefix.encode()
    known, expected = tokenizer(), set()
    for token in range(V):
        raw = known.token_bytes([token], skip_special=False)
        if token not in known.added_ids.values() and raw:
            expected |= {token} if any(text.startswith(before + raw) for text in texts) else set()
    if before in texts:
        expected.add(known.eos_id)
    found = allowed(compiled(AnswerForm(content=choice_rules(choices))), prefix, V)
    # Where one character alone can follow, it comes by the tokens that encoding would give.
    is_forced = (
        len({text[len(before) :].decode()[:1] for text in texts if text.startswith(before)}) == 1
    )
    assert found <= expected if is_forced else found == expected
    assert found


def test_tokens_beyond_the_tokenizer_are_never_allowed() -> None:
    grammar = compiled(AnswerForm(content=regex_rules("(?s:.*)")), V + 70)
    assert max(allowed(grammar, "", V + 70)) < V


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_held_row_takes_the_best_of_what_is_allowed(
    engine: BatchEngine, temperature: float
) -> None:
    """Beside rows that are free; greedy: the most likely allowed token of the model's own."""
    grammar = compiled(
        AnswerForm(content=json_rules({"type": "array", "items": STEP, "maxItems": 3}))
    )
    settings: dict[str, Any] = {"temperature": temperature, "seed": 3, "logprobs": V}
    free = [request([1, 40 + i], new=9, temperature=1.0, seed=i) for i in range(3)]
    held = request([1, 50], new=40, grammar=grammar, **settings)
    alone = engine.generate(free)
    *others, found = engine.generate([*free, held])
    assert [one.ids for one in others] == [one.ids for one in alone]
    matcher = grammar.matcher()
    for token, entry in zip(found.ids, found.logprobs, strict=True):
        bits = matcher.compute_bitmask()
        fits = [i for i, _ in entry.top if bits[i // 8] >> (i % 8) & 1]
        assert token in fits
        assert temperature or token == fits[0], "likeliest first"
        assert matcher.consume_token(token)
    assert found.finish_reason == "stop"
    jsonschema.validate(json.loads(found.text), {"type": "array", "maxItems": 3})


def random_schema(source: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema whose every text is short."""
    kinds = ["integer", "string", "enum", "boolean", "format", "pattern", "number"]
    kind = source.choice(kinds if depth > 2 else [*kinds, "object", "object", "array", "anyOf"])
    is_plain = kind not in ("object", "array", "anyOf")
    count = 1 if is_plain else source.randint(1, 3)
    inner = [{}] if is_plain else [random_schema(source, depth + 1) for _ in range(count)]
    names = source.sample(["a", "名", "b c", 'q"', "properties"], len(inner))
    low = source.randint(-50, 50)
    return {
        "integer": {"type": "integer", "minimum": low, "maximum": low + source.randint(0, 300)},
        "number": {"type": "number", "multipleOf": 5, "minimum": 0, "maximum": 95},
        "string": {"type": "string", "minLength": 1, "maxLength": source.randint(1, 6)},
        "enum": {"enum": [1, "二", None, True, "x\n"][: source.randint(1, 5)]},
        "boolean": {"type": "boolean"},
        "format": {"type": "string", "format": source.choice(["date", "uuid", "ipv4"])},
        "pattern": {"type": "string", "pattern": "^[a-c]{2,4}(x|y)?$"},
        "object": {
            "type": "object",
            "properties": dict(zip(names, inner, strict=True)),
            "required": names[: source.randint(0, len(names))],
        },
        "array": {
            "type": "array",
            "items": inner[0],
            "minItems": source.randint(0, 2),
            "maxItems": source.randint(2, 3),
        },
        "anyOf": {"anyOf": inner},
    }[kind]


def test_answers_of_an_untrained_model_keep_to_any_schema(engine: BatchEngine) -> None:
    source = random.Random(8)
    schemas = [TREE, {"type": "object", "maxProperties": 0}]
    schemas += [random_schema(source) for _ in range(30)]
    requests = [
        request(
            [1, 40 + i],
            new=390,
            stop_ids=(tokenizer().eos_id,),
            temperature=1.0,
            seed=i,
            grammar=compiled(AnswerForm(content=json_rules(schema))),
        )
        for i, schema in enumerate(schemas)
    ]
    ended = 0
    for schema, answer in zip(schemas, engine.generate(requests), strict=True):
        if answer.finish_reason == "length":
            continue
        assert answer.finish_reason == "stop"
        ended += 1
        value = json.loads(answer.text)
        jsonschema.validate(value, schema)
        assert json.dumps(value, ensure_ascii=False)[:1] == answer.text[:1]
    assert ended >= 28


def test_what_a_limit_cuts_off_begins_a_text_of_the_form(engine: BatchEngine) -> None:
    grammar = compiled(AnswerForm(content=regex_rules("(ab){20}")))
    (answer,) = engine.generate([request([1], new=7, grammar=grammar)])
    assert answer.finish_reason == "length"
    assert ("ab" * 20).startswith(answer.text)
    assert answer.completion_tokens == 7


def test_the_end_of_a_grammar_needs_no_token_of_its_own(engine: BatchEngine) -> None:
    grammar = compiled(AnswerForm(content=choice_rules(["ab"])))
    (answer,) = engine.generate([request([1], new=7, grammar=grammar)])
    assert (answer.text, answer.finish_reason) == ("ab", "stop")
    assert tokenizer().eos_id not in answer.ids


def test_a_slot_forgets_its_grammar(engine: BatchEngine) -> None:
    grammar = compiled(AnswerForm(content=choice_rules(["a"])))
    prompts = [[1, 40 + i] for i in range(8)]
    before = engine.generate([request(p, new=5) for p in prompts])
    engine.generate([request(p, new=5, grammar=grammar) for p in prompts])
    after = engine.generate([request(p, new=5) for p in prompts])
    assert [one.ids for one in after] == [one.ids for one in before]


@pytest.mark.parametrize(
    ("form", "texts", "refused"),
    [
        (
            {"after_thinking": True, "content": choice_rules(["a"])},
            ["so, a\nthen </think>\n\na", "</think>a"],
            ["so a", "a</think>\n\n\na", "x</think>b"],
        ),
        (
            {"tools": [ToolForm(name='w"é', parameters={}, is_strict=True)], "must_call": True},
            [
                '<tool_call>\n{"name": "w\\"é", "arguments": {}}\n</tool_call>',
                '<tool_call>\n{"name": "w\\"é", "arguments": {"a": 1}}\n</tool_call>\n'
                '<tool_call>\n{"name": "w\\"é", "arguments": {}}\n</tool_call>',
            ],
            ["", "hi", '<tool_call>\n{"name": "v"'],
        ),
        (
            {
                "tools": [ToolForm(name="w", parameters=ARGUMENT, is_strict=True)],
                "one_call": True,
                "after_thinking": True,
            },
            ["hm</think>\n\nhi", '</think>I ask\n<tool_call>\n{"name": "w", '
             '"arguments": {"s": "a"}}\n</tool_call>'],
            ["hm", '</think><tool_call>\n{"name": "w", "arguments": {"s": 1'],
        ),
        (
            {
                "tools": [ToolForm(name="w", parameters=ARGUMENT, is_strict=True)],
                "content": choice_rules(["yes"]),
            },
            ["yes", '<tool_call>\n{"name": "w", "arguments": {"s": "a"}}\n</tool_call>'],
            ["no", "yes<tool_call>"],
        ),
    ],
    ids=["thinking", "required", "auto", "json or a call"],
)  # fmt: skip
def test_what_comes_before_and_beside_the_text(
    form: dict[str, Any], texts: list[str], refused: list[str]
) -> None:
    grammar = compiled(AnswerForm(**form))
    for text in [*texts, *refused]:
        matcher = grammar.matcher()
        fits = matcher.consume_tokens(tokenizer().encode_rendered(text)) and matcher.is_accepting()
        assert fits == (text in texts), text


def test_thoughts_cannot_spell_their_end_in_other_tokens() -> None:
    grammar = compiled(AnswerForm(content=choice_rules(["a"]), after_thinking=True))
    assert tokenizer().added_ids["</think>"] in allowed(grammar, "so </think")
    spelled = tokenizer().encode("so </think>")
    assert not grammar.matcher().consume_tokens(spelled)


def test_a_grammar_that_fails_fails_its_request_alone(
    engine: BatchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    grammar = compiled(AnswerForm(content=regex_rules("[a-z]{30}")))
    accept = GrammarMasks.accept

    def fail(self: GrammarMasks, slot: int, token: int) -> bool:
        if slot in self._matchers:
            raise GrammarFailure("too complex")
        return accept(self, slot, token)

    monkeypatch.setattr(GrammarMasks, "accept", fail)
    held, free = engine.generate([request([1], new=4, grammar=grammar), request([1, 40], new=4)])
    assert (held.finish_reason, free.finish_reason) == ("error", "length")
    assert engine.stats.free_slots == 8
