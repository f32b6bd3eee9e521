"""Two tokenizers, of which one may mean other tokens by the same ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minimind.data.same_tokens import check_folder_tokens, check_same_tokens, describe_other_end
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


def roles(tokenizer: Tokenizer, **tokens: str | None) -> Tokenizer:
    """The same tokens, some of which have another role."""
    config = {name: token for name, token in (tokenizer._config | tokens).items() if token}
    return Tokenizer(tokenizer._spec, config, "roles")


@pytest.mark.parametrize(
    ("bos", "said"),
    [(None, "its text, and no token before it"), ("<|im_end|>", "token 2 ('<|im_end|>')")],
)
def test_documents_that_begin_otherwise_are_of_another_tokenizer(
    tokenizer: Tokenizer, bos: str | None, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_same_tokens(roles(tokenizer, bos_token=bos), tokenizer, "Do this")
    assert f"begins a document with {said}, that of" in str(caught.value)
    assert str(caught.value).endswith("with token 1 ('<|im_start|>'). Do this")


def test_a_normalizer_and_other_merges_are_the_same_tokenizer(tokenizer: Tokenizer) -> None:
    spec = json.loads(json.dumps(tokenizer._spec))
    spec["normalizer"] = {"type": "Lowercase"}
    spec["model"]["merges"] = spec["model"]["merges"][:-9]
    check_same_tokens(Tokenizer(spec, tokenizer._config, "other"), tokenizer, "")


def test_another_end_is_described(tokenizer: Tokenizer, tmp_path: Path) -> None:
    other = roles(tokenizer, eos_token="<|endoftext|>")
    assert describe_other_end(other, tmp_path) == ""
    tokenizer.save(tmp_path)
    check_folder_tokens(other, tmp_path, "")
    assert describe_other_end(tokenizer, tmp_path) == ""
    said = describe_other_end(other, tmp_path)
    assert "ends a document with token 0 ('<|endoftext|>'), that of" in said
    assert said.endswith("with token 2 ('<|im_end|>')")


def test_what_cannot_be_read_cannot_be_compared(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}', encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"no byte-level BPE .* cannot be compared\. Do this"):
        check_folder_tokens(tokenizer, tmp_path, "Do this")
