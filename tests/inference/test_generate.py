"""Generation: what is yielded, when it ends, and that no character is ever broken."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import loss_of, pack, random_model, small_config
from torch import Tensor

from minimind.data.tokenizer import Tokenizer
from minimind.errors import CheckpointError, ConfigError, MiniMindError
from minimind.inference.generate import generate_text, stream_text
from minimind.inference.load import lay_out_for_decoding, load_model
from minimind.inference.sampling import SamplingParams
from minimind.model.cached_attention import CachePlan
from minimind.model.kv_cache import KVCache
from minimind.model.state_dict import save_hf_folder
from minimind.model.transformer import Transformer
from minimind.samples.text import load_sample_tokenizer


class Scripted(Transformer):
    """Says the given ids one after another, then the end of text."""

    def __init__(self, tokenizer: Tokenizer, ids: Sequence[int]) -> None:
        super().__init__(small_config(vocab_size=tokenizer.vocab_size))
        self.script = iter([*ids, *itertools.repeat(tokenizer.eos_id, 3)])
        self.said = 0
        self.seen: list[int] = []

    def decode(
        self, ids_M: Tensor, cache: KVCache, plan: CachePlan, wanted_R: Tensor | None = None
    ) -> Tensor:
        self.said += 1
        self.seen += ids_M.tolist()
        logits_1V = torch.zeros(1, self.config.vocab_size)
        logits_1V[0, next(self.script)] = 1.0
        return logits_1V


@functools.cache
def sample_tokenizer() -> Tokenizer:
    return load_sample_tokenizer()


@pytest.fixture
def tokenizer() -> Tokenizer:
    return sample_tokenizer()


@pytest.fixture
def stream(tokenizer: Tokenizer) -> Callable[..., list[str]]:
    """stream(ids, *stops) -> the pieces of text that come out."""

    def run(ids: Sequence[int], *stops: str, limit: int | None = None) -> list[str]:
        p = SamplingParams(max_new_tokens=len(ids) + 2 if limit is None else limit, stop=stops)
        model = Scripted(tokenizer, ids)
        return list(stream_text(model, tokenizer, tokenizer.document_start, p))

    return run


def single_characters(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids that spell `text` with as many tokens as there are characters, or more."""
    return [id for char in text for id in tokenizer.encode(char)]


TEXTS = [
    "Hello, world!",
    "你好，世界。龘",
    "a🙂b👩\u200d👩\u200d👧 é ñ",
    "🇨🇳🇨🇳 тест עברית",
    "line\n\ttab  end ",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("split", [False, True], ids=["tokens", "single"])
def test_characters_come_whole(
    stream: Callable[..., list[str]], tokenizer: Tokenizer, text: str, split: bool
):
    ids = single_characters(tokenizer, text) if split else tokenizer.encode(text)
    pieces = stream(ids)
    assert "".join(pieces) == text
    assert all(pieces), "an empty piece tells a reader nothing"
    assert not any("\ufffd" in piece for piece in pieces)


def test_the_sample_tokenizer_does_split_characters(tokenizer: Tokenizer):
    """Else the test above would show nothing."""
    for char in "🙂龘":
        assert len(tokenizer.encode(char)) > 1


def test_a_character_cut_off_by_the_limit_shows_as_such(
    stream: Callable[..., list[str]], tokenizer: Tokenizer
):
    ids = tokenizer.encode("a🙂")
    pieces = stream(ids, limit=len(ids) - 1)
    assert "".join(pieces) == "a\ufffd" == tokenizer.decode(ids[:-1])


def test_text_comes_as_soon_as_it_is_known(tokenizer: Tokenizer):
    ids = single_characters(tokenizer, "one END")
    model = Scripted(tokenizer, ids)
    p = SamplingParams(max_new_tokens=50, stop=("END",))
    seen = ""
    for piece in stream_text(model, tokenizer, tokenizer.document_start, p):
        seen += piece
        assert model.said == len(seen)
    assert seen == "one "


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("t",), "one "),
        ("one two three", ("three", "two"), "one "),
        ("one two three", ("four",), "one two three"),
        ("one two", ("two!",), "one two"),
        ("aaab", ("aab",), "a"),
        ("abababc", ("ababc",), "ab"),
        ("你好，世界", ("，世",), "你好"),
        ("a🙂b", ("🙂",), "a"),
        ("stop", ("stop",), ""),
        ("x\n\ny", ("\n\n",), "x"),
        ("nested", ("st", "este"), "ne"),
    ],
)
@pytest.mark.parametrize("split", [False, True], ids=["tokens", "single"])
def test_stop_strings_end_the_text(
    stream: Callable[..., list[str]],
    tokenizer: Tokenizer,
    text: str,
    stops: tuple[str, ...],
    expected: str,
    split: bool,
):
    ids = single_characters(tokenizer, text) if split else tokenizer.encode(text)
    pieces = stream(ids, *stops)
    assert "".join(pieces) == expected
    assert all(pieces)


@given(text=st.text("ab,你🙂", max_size=30), stop=st.text("ab,你🙂", min_size=1, max_size=5))
@settings(max_examples=80)
def test_any_text_is_cut_at_the_first_stop(text: str, stop: str):
    tokenizer = sample_tokenizer()
    for ids in (tokenizer.encode(text), single_characters(tokenizer, text)):
        p = SamplingParams(max_new_tokens=len(ids) + 1, stop=(stop,))
        model = Scripted(tokenizer, ids)
        found = "".join(stream_text(model, tokenizer, tokenizer.document_start, p))
        assert found == text.split(stop)[0]


def test_nothing_is_made_after_a_stop(tokenizer: Tokenizer):
    ids = single_characters(tokenizer, "ab.cdef")
    model = Scripted(tokenizer, ids)
    p = SamplingParams(max_new_tokens=50, stop=(".",))
    assert "".join(stream_text(model, tokenizer, tokenizer.document_start, p)) == "ab"
    assert model.said == 3


def test_the_end_of_text_ends_it(stream: Callable[..., list[str]], tokenizer: Tokenizer):
    ids = tokenizer.encode("one two")
    assert "".join(stream([*ids, tokenizer.eos_id, *ids])) == "one two"
    assert stream([tokenizer.eos_id]) == []


def test_special_tokens_are_not_text(stream: Callable[..., list[str]], tokenizer: Tokenizer):
    ids = tokenizer.encode("ab")
    assert "".join(stream([*tokenizer.document_start, *ids, tokenizer.pad_id])) == "ab"


def test_a_seed_repeats_the_text(tokenizer: Tokenizer):
    model = random_model(small_config(vocab_size=tokenizer.vocab_size)).eval()

    def text(seed: int | None) -> str:
        p = SamplingParams(max_new_tokens=20, temperature=1.5, seed=seed)
        return generate_text(model, tokenizer, "6 + 9 =", p)

    assert text(1) == text(1)
    assert len({text(1), text(2), text(None), text(None)}) == 4


def test_the_prompt_starts_a_document_and_is_not_repeated(tokenizer: Tokenizer):
    model = Scripted(tokenizer, tokenizer.encode(" 15"))
    assert generate_text(model, tokenizer, "6 + 9 =", SamplingParams()) == " 15"
    prompt = tokenizer.encode_document("6 + 9 =")
    assert model.seen == [*prompt, *tokenizer.encode(" 15")]


def test_no_text_at_all_is_a_prompt(tokenizer: Tokenizer):
    model = Scripted(tokenizer, tokenizer.encode("x"))
    assert generate_text(model, tokenizer, "", SamplingParams()) == "x"


def test_a_prompt_that_cannot_be_continued_is_refused(tokenizer: Tokenizer):
    config = small_config(vocab_size=tokenizer.vocab_size, max_position_embeddings=16)
    model = random_model(config).eval()

    def pieces(prompt: int, new: int) -> list[str]:
        return list(stream_text(model, tokenizer, [5] * prompt, SamplingParams(max_new_tokens=new)))

    pieces(10, 6)
    with pytest.raises(ConfigError, match="the prompt is empty"):
        pieces(0, 6)
    for prompt, new in ((10, 7), (17, 0), (1, 16)):
        with pytest.raises(ConfigError) as caught:
            pieces(prompt, new)
        for word in (str(prompt), str(new), "16", "context"):
            assert word in str(caught.value)


@pytest.mark.parametrize("training", [False, True])
def test_a_model_that_trains_can_be_sampled(tokenizer: Tokenizer, training: bool):
    """No gradient is recorded, and what is kept between calls can be trained with."""
    model = random_model(small_config(vocab_size=tokenizer.vocab_size)).train(training)
    generate_text(model, tokenizer, "6 +", SamplingParams(max_new_tokens=3))
    assert model.training is training
    loss_of(model, pack([[[5, 6, 7, 8]]])).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_is_loaded_ready_to_generate(
    tmp_path: Path, tokenizer: Tokenizer, dtype: torch.dtype
):
    model = random_model(small_config(vocab_size=tokenizer.vocab_size, dropout=0.5))
    weights = {name: p.detach() for name, p in model.named_parameters()}
    save_hf_folder(tmp_path, model.config, weights, torch.float32)
    tokenizer.save(tmp_path)
    loaded, with_it = load_model(tmp_path, dtype=dtype)
    assert not loaded.training
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, weights[name].to(dtype))
    assert with_it.encode("6 + 9") == tokenizer.encode("6 + 9")
    model.eval().to(dtype)
    p = SamplingParams(max_new_tokens=5)
    assert generate_text(loaded, with_it, "6 +", p) == generate_text(model, tokenizer, "6 +", p)


def test_matrices_by_columns_are_the_same_matrices(tokenizer: Tokenizer):
    model = random_model(small_config(vocab_size=tokenizer.vocab_size)).eval()
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    p = SamplingParams(max_new_tokens=12)
    expected = generate_text(model, tokenizer, "6 +", p)
    lay_out_for_decoding(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, kept[name])
        assert parameter.dim() < 2 or parameter.stride(0) == 1
    assert model.lm_head.weight is model.embed_tokens.weight
    assert generate_text(model, tokenizer, "6 +", p) == expected


def test_a_folder_that_is_none_is_named(tmp_path: Path, tokenizer: Tokenizer):
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read"):
        load_model(tmp_path)
    model = random_model(small_config())
    weights = {name: p.detach() for name, p in model.named_parameters()}
    save_hf_folder(tmp_path, model.config, weights, torch.float32)
    with pytest.raises(MiniMindError, match=r"tokenizer\.json"):
        load_model(tmp_path)
    tokenizer.save(tmp_path)
    with pytest.raises(ConfigError, match=r"1577 tokens, the model only 97"):
        load_model(tmp_path)
