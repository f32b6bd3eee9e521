"""The fields of steps beside the flags of the commands that they become."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from minimind.cli import convert, evaluate, tokenizer
from minimind.pipeline.options import ConvertFields, EvaluateFields, TokenizerFields, spell_flags

PARSERS: dict[Any, tuple[argparse.ArgumentParser, set[str]]] = {
    TokenizerFields: (tokenizer.build_parser(), {"output_dir"}),
    EvaluateFields: (evaluate._parser(), {"checkpoint", "json"}),
    ConvertFields: (
        convert._parser(),
        {"input", "output", "max_shard_size"}
        # For weights that say less than a run's.
        | {"tokenizer", "set", "config", "base"},
    ),
}


@pytest.mark.parametrize("kind", PARSERS)
def test_the_fields_are_the_flags_with_their_defaults(kind: Any):
    parser, others = PARSERS[kind]
    flags = {action.dest: action for action in parser._actions if action.dest != "help"}
    fields = {field.name: field for field in dataclasses.fields(kind)}
    assert fields.keys() == flags.keys() - others
    hints = get_type_hints(kind)
    for name, field in fields.items():
        action = flags[name]
        assert action.required == (field.default is dataclasses.MISSING), name
        if not action.required:
            assert (field.default or None) == (action.default or None), name
        if get_origin(hints[name]) is Literal:
            assert set(get_args(hints[name])) == set(action.choices or ()), name


def test_fields_become_flags_that_the_command_reads():
    fields = EvaluateFields(
        data=("a b.jsonl", "c.jsonl"), prompts=("Who are you?",), chat=True, temperature=0.5
    )
    parser, _ = PARSERS[EvaluateFields]
    read = vars(parser.parse_args(["--checkpoint", "x", *spell_flags(fields)]))
    assert {name: read[name] for name in ("data", "prompts", "chat", "temperature", "seed")} == {
        "data": ["a b.jsonl", "c.jsonl"],
        "prompts": ["Who are you?"],
        "chat": True,
        "temperature": 0.5,
        "seed": 0,
    }
