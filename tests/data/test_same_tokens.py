"""Two tokenizers, of which one may mean other tokens by the same ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minimind.data.same_tokens import check_folder_tokens, check_same_tokens
from minimind.data.tokenizer import Tokenizer
from minimind.data.tokenizer_training import train_tokenizer
from minimind.errors import ConfigError


def swapped(tokenizer: Tokenizer, template: str | None = None) -> Tokenizer:
    """The same size and texts, two ids changed places; with `template`, that alone is another."""
    spec = json.loads(json.dumps(tokenizer._spec))
    vocab = spec["model"]["vocab"]
    if template is None:
        one, other = sorted(vocab, key=vocab.__getitem__)[-2:]
        vocab[one], vocab[other] = vocab[other], vocab[one]
    config = tokenizer._config | ({"chat_template": template} if template else {})
    return Tokenizer(spec, config, "swapped")


def test_ids_that_changed_places_are_another_tokenizer(tokenizer: Tokenizer) -> None:
    first = tokenizer.vocab_size - 2
    with pytest.raises(ConfigError, match=rf"token {first} is b'.*, and 2 of .*\. Do this"):
        check_same_tokens(swapped(tokenizer), tokenizer, "Do this")


def test_another_chat_template_is_the_same_tokenizer(tokenizer: Tokenizer) -> None:
    check_same_tokens(swapped(tokenizer, "other"), tokenizer, "")


def test_a_smaller_one_is_compared_id_by_id(tokenizer: Tokenizer) -> None:
    other = train_tokenizer(["some other text " * 20], vocab_size=304)
    assert other.vocab_size < tokenizer.vocab_size
    for pair in ((other, tokenizer), (tokenizer, other)):
        with pytest.raises(ConfigError, match="token 292 is"):
            check_same_tokens(*pair, "")


def test_a_folder_without_a_tokenizer_says_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    check_folder_tokens(swapped(tokenizer), tmp_path, "")
    tokenizer.save(tmp_path)
    check_folder_tokens(tokenizer, tmp_path, "")
    with pytest.raises(ConfigError, match="is another than that of"):
        check_folder_tokens(swapped(tokenizer), tmp_path, "")
