"""Compiles grammars for tests, and tells what they allow."""

from __future__ import annotations

import functools
from typing import Any

import torch
from small_engines import tokenizer

from minimind.inference.grammar import Grammar, GrammarCompiler
from minimind.inference.grammar_masks import GrammarMasks
from minimind.inference.grammar_texts import AnswerForm

V = tokenizer().vocab_size
STEP = {"type": "string", "maxLength": 4}


@functools.cache
def compiler(vocab_size: int) -> GrammarCompiler:
    return GrammarCompiler(tokenizer(), vocab_size)


def compiled(form: AnswerForm, vocab_size: int = V) -> Grammar:
    return compiler(vocab_size).compile(form.text(tokenizer()))


def takes(rules: dict[str, Any], text: str) -> bool:
    """Whether it is a whole text of the form."""
    matcher = compiled(AnswerForm(content=rules)).matcher()
    ids = tokenizer().encode(text)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def allowed(grammar: Grammar, prefix: str, vocab_size: int = V) -> set[int]:
    """By the masks, after the tokens of `prefix`."""
    masks = GrammarMasks(2, vocab_size, torch.device("cpu"))
    masks.open(0, None)
    masks.open(1, grammar)
    for token in tokenizer().encode_rendered(prefix):
        assert not masks.accept(1, token)
    masks.find([0, 1])
    free_V, held_V = masks.apply(torch.zeros(2, vocab_size), torch.tensor([0, 1]))
    assert free_V.eq(0).all(), "without a grammar any token may come"
    return {i for i, logit in enumerate(held_V.tolist()) if logit == 0}
