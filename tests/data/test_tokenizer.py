from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimind.data import text_pieces
from minimind.data.byte_level_bpe import byte_alphabet
from minimind.data.text_format import text_samples
from minimind.data.tokenizer import Tokenizer
from minimind.data.tokenizer_training import RESERVED_TOKENS
from minimind.errors import ConfigError, DataError
from minimind.types import Row, Sample

ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=80)
PIECES = st.lists(st.one_of(st.sampled_from(RESERVED_TOKENS), ANY_TEXT), max_size=6).map("".join)


@given(text=PIECES)
def test_text_round_trips_and_never_becomes_a_reserved_token(
    tokenizer: Tokenizer, text: str
) -> None:
    ids = tokenizer.encode(text)
    assert not set(ids) & set(range(len(RESERVED_TOKENS)))
    assert tokenizer.decode(ids, skip_special=False) == text
    assert tokenizer.decode(ids) == text


@given(text=PIECES)
def test_rendered_text_is_encoded_as_transformers_does(
    tokenizer: Tokenizer, hugging_face, text: str
) -> None:
    ids = tokenizer.encode_rendered(text)
    assert ids == hugging_face(text, add_special_tokens=False)["input_ids"]
    for skip in (False, True):
        assert tokenizer.decode(ids, skip) == hugging_face.decode(ids, skip_special_tokens=skip)


@given(ids=st.lists(st.integers(0, 1400), max_size=40))
def test_any_ids_decode_as_in_transformers_and_as_a_stream(
    tokenizer: Tokenizer, hugging_face, ids: list[int]
) -> None:
    decoder = tokenizer.stream_decoder()
    text = "".join([*map(decoder.push, ids), decoder.flush()])
    assert text == tokenizer.decode(ids) == hugging_face.decode(ids, skip_special_tokens=True)


def test_transformers_knows_the_same_special_tokens(tokenizer: Tokenizer, hugging_face) -> None:
    assert hugging_face.bos_token_id == tokenizer.bos_id == 1
    assert hugging_face.eos_token_id == tokenizer.eos_id == 2
    assert hugging_face.pad_token_id == tokenizer.pad_id == 0
    assert len(hugging_face) == tokenizer.vocab_size
    assert hugging_face.chat_template == tokenizer.chat_template


def test_a_stream_holds_back_unfinished_characters(tokenizer: Tokenizer) -> None:
    byte_ids = [tokenizer._rendered.token_to_id(byte_alphabet()[b]) for b in "鑫".encode()]
    decoder = tokenizer.stream_decoder()
    assert [decoder.push(i) for i in byte_ids] == ["", "", "鑫"]
    assert decoder.push(byte_ids[0]) == ""
    assert decoder.flush() == "\ufffd"


def test_ids_beyond_the_vocabulary_have_no_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([*tokenizer.encode("ab"), tokenizer.vocab_size + 7]) == "ab"


def test_skipping_special_tokens_keeps_the_tags(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_rendered("<|im_start|>a<think><|buffer1|><|im_end|>")
    assert tokenizer.decode(ids) == "a<think><|buffer1|>"


def test_a_long_text_is_encoded_in_pieces_to_the_same_ids(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "The river of Lumor.\n塔恩的房子 是蓝色的。 " * 40
    whole = tokenizer._plain.encode(text, add_special_tokens=False).ids
    monkeypatch.setattr(text_pieces.split_text, "__defaults__", (200,))
    assert len(text_pieces.split_text(text)) > 5
    assert tokenizer.encode(text) == whole


def test_encode_batch_is_encode_of_each(tokenizer: Tokenizer) -> None:
    texts = ["", "a", "塔恩\x00", "x" * 1000, " "]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch([]) == []


def test_save_and_load_keep_everything(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "a" / "b")
    again = Tokenizer.load(tmp_path / "a" / "b")
    assert again.fingerprint == tokenizer.fingerprint
    assert again.chat_template == tokenizer.chat_template
    assert again.special_ids == tokenizer.special_ids == frozenset(range(21))


def test_the_fingerprint_sees_merges_and_template(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def changed(file: str, change) -> str:
        tokenizer.save(tmp_path)
        edit(tmp_path / file, change)
        return Tokenizer.load(tmp_path).fingerprint

    prints = {
        tokenizer.fingerprint,
        changed("tokenizer.json", lambda spec: spec["model"]["merges"].pop()),
        changed("tokenizer_config.json", lambda config: config.update(chat_template="x")),
        changed("tokenizer_config.json", lambda config: config.update(bos_token="<|im_end|>")),
    }
    assert len(prints) == 4


def test_a_template_in_its_own_file_is_used(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("own file", encoding="utf-8")
    assert Tokenizer.load(tmp_path).chat_template == "own file"


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def _original_style(tokenizer: Tokenizer, folder: Path) -> None:
    """Three added tokens, an unknown token, bos and eos as objects, no pad: as earlier MiniMind
    generations have it."""

    def change(spec: dict[str, Any]) -> None:
        spec["added_tokens"] = spec["added_tokens"][:3]
        spec["model"]["unk_token"] = "<|endoftext|>"
        spec["post_processor"] = {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": False,
            "use_regex": True,
        }

    tokenizer.save(folder)
    edit(folder / "tokenizer.json", change)
    config = {
        "bos_token": {"content": "<|im_start|>"},
        "eos_token": "<|im_end|>",
        "chat_template": [{"name": "default", "template": "t"}],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def test_earlier_generations_load(tokenizer: Tokenizer, tmp_path: Path) -> None:
    _original_style(tokenizer, tmp_path)
    old = Tokenizer.load(tmp_path)
    text = "hi <think><|im_end|>"
    assert (old.bos_id, old.eos_id, old.pad_id) == (1, 2, 2)
    assert old.chat_template == "t"
    assert 2 not in old.encode(text)
    assert old.encode_rendered(text)[-1] == 2
    assert old.decode(old.encode(text)) == text


def _without_bos(tokenizer: Tokenizer, folder: Path) -> None:
    """As Qwen's, which also has a post-processor that adds nothing."""
    _original_style(tokenizer, folder)
    config = {"bos_token": None, "eos_token": "<|im_end|>", "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def _with_eos_at_the_end(tokenizer: Tokenizer, folder: Path) -> None:
    """A post-processor that ends a text, which nothing could go on with."""

    def change(spec: dict[str, Any]) -> None:
        processor = spec["post_processor"]
        processor["single"].append({"SpecialToken": {"id": "<|im_end|>", "type_id": 0}})
        entry = {"id": "<|im_end|>", "ids": [2], "tokens": ["<|im_end|>"]}
        processor["special_tokens"]["<|im_end|>"] = entry

    tokenizer.save(folder)
    edit(folder / "tokenizer.json", change)


def _as_earlier_versions(tokenizer: Tokenizer, folder: Path) -> None:
    """Saved before tokenizer.json said how a text begins."""
    tokenizer.save(folder)
    edit(folder / "tokenizer.json", lambda spec: spec.update(post_processor=None))
    edit(folder / "tokenizer_config.json", lambda config: config.update(add_bos_token=False))


@pytest.mark.parametrize(
    ("write", "start"),
    [
        (lambda tokenizer, folder: tokenizer.save(folder), [1]),
        (_as_earlier_versions, [1]),
        (_original_style, [1]),
        (_with_eos_at_the_end, [1]),
        (_without_bos, []),
    ],
    ids=["ours", "earlier version", "original", "eos at the end", "no bos"],
)
def test_a_text_begins_in_transformers_as_in_training(
    tokenizer: Tokenizer, tmp_path: Path, write, start: list[int]
) -> None:
    transformers = pytest.importorskip("transformers")
    write(tokenizer, tmp_path / "found")
    found = Tokenizer.load(tmp_path / "found")
    found.save(tmp_path / "exported")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    for text in ("The river", "塔恩", " 6 + 9 ="):
        assert found.encode_document(text) == start + found.encode(text)
        assert theirs(text)["input_ids"] == found.encode_document(text)
        (sample,) = text_samples([Row(data={"text": text}, path="a", line=1)], found)
        assert isinstance(sample, Sample)
        assert sample.ids.tolist() == theirs(text)["input_ids"] + [found.eos_id]
    assert Tokenizer.load(tmp_path / "exported").encode_document("a") == found.encode_document("a")


@pytest.mark.parametrize(
    "write", [_as_earlier_versions, _original_style, _without_bos, _with_eos_at_the_end]
)
def test_the_fingerprint_does_not_see_who_wrote_how_a_text_begins(
    tokenizer: Tokenizer, tmp_path: Path, write
) -> None:
    """Else the next stage of a folder from outside would tokenise all data again."""
    write(tokenizer, tmp_path)
    found = Tokenizer.load(tmp_path)
    found.save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == found.fingerprint
    if write in (_as_earlier_versions, _with_eos_at_the_end):
        assert found.fingerprint == tokenizer.fingerprint


def test_a_tokenizer_larger_than_the_model_is_refused(tokenizer: Tokenizer) -> None:
    tokenizer.check_fits(tokenizer.vocab_size)
    size = tokenizer.vocab_size
    with pytest.raises(ConfigError, match=f"{size} tokens, the model only {size - 1}"):
        tokenizer.check_fits(size - 1)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", None, r"tokenizer\.json: no such file"),
        ("tokenizer_config.json", None, r"tokenizer_config\.json: no such file"),
        ("tokenizer.json", "{", "not JSON"),
        ("tokenizer.json", "[]", "a JSON object is expected"),
        ("tokenizer.json", "{}", "no byte-level BPE"),
        ("tokenizer.json", '{"model": {"type": "WordPiece", "vocab": {}}}', "no byte-level BPE"),
        ("tokenizer.json", '{"model": "BPE"}', "not the files of a tokenizer"),
        ("tokenizer.json", '{"added_tokens": [{"id": 1}]}', "not the files of a tokenizer"),
        (
            "tokenizer.json",
            '{"pre_tokenizer": {"type": "ByteLevel"}, "added_tokens": [{"content": "", "id": 1}]}',
            "an added token without a text",
        ),
        ("tokenizer_config.json", "{}", "gives no eos_token"),
        ("tokenizer_config.json", '{"bos_token": "<s>"}', "as '<s>', which is not in the vocab"),
    ],
)
@pytest.mark.faults("a tokenizer with files missing or malformed", "named")
def test_folders_that_cannot_be_used(
    tokenizer: Tokenizer, tmp_path: Path, file: str, content: str | None, message: str
) -> None:
    tokenizer.save(tmp_path)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        Tokenizer.load(tmp_path)


def test_a_missing_folder_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="minimind tokenizer"):
        Tokenizer.load(tmp_path / "none")


@pytest.mark.faults("merges with which text becomes a special token", "refused")
def test_merges_that_build_an_added_token_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def change(spec: dict[str, Any]) -> None:
        spec["added_tokens"][3]["content"] = "river"
        vocab = spec["model"]["vocab"]
        del vocab[RESERVED_TOKENS[3]]
        vocab |= {"river": 3, "ri": 5000, "riv": 5001, "rive": 5002}
        spec["model"]["merges"] = [["r", "i"], ["ri", "v"], ["riv", "e"], ["rive", "r"]]

    tokenizer.save(tmp_path)
    edit(tmp_path / "tokenizer.json", change)
    with pytest.raises(DataError, match="build the added token 'river'"):
        Tokenizer.load(tmp_path)
