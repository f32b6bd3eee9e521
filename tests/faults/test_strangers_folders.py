"""A folder that someone else made is data: whatever it says is refused in bounded time and memory,
by an error that names it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_folders import small_folder

from minimind.data.chat_template import render_chat
from minimind.data.tokenizer import Tokenizer
from minimind.errors import CheckpointError, DataError
from minimind.inference.batch_engine import BatchEngine
from minimind.inference.load import load_model
from minimind.lora.alphas import match_patterns, read_alphas
from minimind.lora.folder import find_base, load_folder_config
from minimind.model.hf_config import load_hf_config
from minimind.model.state_dict import load_hf_folder
from minimind.runtime import bounded_call

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture
def folder(shared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shared, tmp_path / "model"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes the limits of time short, in pools of their own."""
    bounded_call._pool.cache_clear()
    monkeypatch.setattr(bounded_call, "TIME_LIMIT_S", 1.0)
    monkeypatch.setattr(bounded_call, "_FIRST_S", 1.5)
    yield
    bounded_call._pool.cache_clear()


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.faults("a config.json with huge numbers of layers or experts", "refused at once")
@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 10**30},
        {"vocab_size": 10**12},
        {"max_position_embeddings": 10**12},
        {"model_type": "qwen3_moe", "decoder_sparse_step": 2, "num_hidden_layers": 10**9},
        {"model_type": "minimind_moe", "num_experts": 4, "minimind": {"n_shared_experts": 10**9}},
        {"layer_types": [1, "x"]},
    ],
    ids=str,
)
def test_huge_sizes(folder: Path, changes: dict[str, Any]) -> None:
    edit(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=r"at most|layer_types|unknown|must be"):
        load_hf_config(folder)


@pytest.mark.faults("a config.json that claims a context of millions", "takes no more memory")
def test_a_huge_context(folder: Path) -> None:
    edit(folder / "config.json", max_position_embeddings=1 << 24)
    model, tokenizer = load_model(folder)
    assert BatchEngine(model, tokenizer, max_batch=32, fast_decode=False).max_sequence == 1 << 15


@pytest.mark.faults("JSON nested 100,000 deep in any file", "refused: 100 levels are the most")
@pytest.mark.parametrize("text", [DEEP, '{"a":' * 300 + "1" + "}" * 300], ids=["lists", "objects"])
def test_deep_json(folder: Path, text: str) -> None:
    for name, load in (
        ("config.json", load_hf_config),
        ("tokenizer.json", Tokenizer.load),
        ("tokenizer_config.json", Tokenizer.load),
        ("adapter_config.json", find_base),
    ):
        path = folder / name
        kept = path.read_text() if path.exists() else None
        path.write_text(text)
        with pytest.raises((CheckpointError, DataError), match=name):
            load(folder)
        path.unlink() if kept is None else path.write_text(kept)


@pytest.mark.faults("a pipe in place of any file", "refused, since reading may never end")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_pipes(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises((CheckpointError, DataError), match="a pipe, a device or a socket"):
        load_model(folder)


@pytest.mark.faults("a pipe as the index of the weights", "refused")
def test_a_pipe_as_index(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors.index.json")
    with pytest.raises(CheckpointError, match="a pipe, a device or a socket"):
        load_hf_folder(folder)


def as_adapter(folder: Path, **values: Any) -> Path:
    adapter = folder / "adapter"
    adapter.mkdir()
    shutil.copy(folder / "model.safetensors", adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "base_model_name_or_path": str(folder)} | values
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    return adapter


@pytest.mark.faults("an adapter based on itself", "refused, with the circle")
def test_an_adapter_based_on_itself(folder: Path) -> None:
    adapter = as_adapter(folder, base_model_name_or_path=str(folder / "adapter"))
    for load in (find_base, load_folder_config):
        with pytest.raises(CheckpointError, match="based on itself"):
            load(adapter)


@pytest.mark.faults("an adapter whose base is no path, or one of 5,000 characters", "refused")
@pytest.mark.parametrize("base", [7, ["a"], "x" * 5000, "a\0b", "a/" * 3000])
def test_a_base_that_is_no_path(folder: Path, base: object) -> None:
    adapter = as_adapter(folder, base_model_name_or_path=base)
    with pytest.raises(CheckpointError, match=r"no path|no model folder"):
        find_base(adapter)


@pytest.mark.faults("an adapter with alphas that are no numbers", "refused")
@pytest.mark.parametrize(
    "values",
    [{"lora_alpha": "x"}, {"lora_alpha": None}, {"alpha_pattern": ["q"]},
     {"alpha_pattern": {"q_proj": "x"}}, {"lora_alpha": 10**400}, {"lora_alpha": float("nan")},
     {"lora_alpha": True}],
    ids=str,
)  # fmt: skip
def test_alphas_that_are_no_numbers(values: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="alpha"):
        read_alphas(values, ["layers.0.q_proj"], "adapter_config.json")


@pytest.mark.faults("an adapter's pattern that back-tracks for ever", "refused after 10 seconds")
def test_a_pattern_that_takes_for_ever(quick: None) -> None:
    values = {"alpha_pattern": {"([a-z0-9._]+)+!": 4}}
    with pytest.raises(CheckpointError, match="takes longer than 1 s"):
        read_alphas(values, ["model.layers.0.self_attn.q_proj"], "adapter_config.json")


@pytest.mark.faults("an adapter's pattern that is no regular expression", "refused")
def test_a_pattern_that_is_none() -> None:
    with pytest.raises(CheckpointError, match=r"'\('.*no regular expression"):
        read_alphas({"alpha_pattern": {"(": 4}}, ["a.q_proj"], "adapter_config.json")


PART = st.sampled_from(["a", "b", "q_proj", "0", "1"])


@given(
    patterns=st.lists(st.lists(PART, min_size=1).map(".".join), unique=True),
    names=st.lists(st.lists(PART, min_size=1).map(".".join)),
)
def test_plain_patterns_are_matched_as_by_peft(patterns: list[str], names: list[str]) -> None:
    values = {"lora_alpha": -1, "alpha_pattern": {p: at for at, p in enumerate(patterns)}}
    memory = pytest.MonkeyPatch()
    memory.setattr("minimind.lora.alphas.limit_memory", lambda: None)
    expected = match_patterns((patterns, names))
    memory.undo()
    alphas = read_alphas(values, names, "x")
    wanted = [-1 if found is None else patterns.index(found) for found in expected]
    assert [alphas[name] for name in names] == wanted


TEMPLATES = {
    "loops": "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
    "a number": "{{ 10 ** (10 ** 8) }}",
    "nested lists": "{% set n = namespace(l=[1]) %}{% for i in range(99) %}"
    "{% set n.l = [n.l, n.l] %}{% endfor %}{{ n.l }}",
}


@pytest.mark.faults("a chat template that loops or counts for ever", "refused after 10 seconds")
@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_that_take_for_ever(quick: None, name: str) -> None:
    with pytest.raises(DataError, match=r"cannot render these messages: it (takes|needs)"):
        render_chat(TEMPLATES[name], [{"role": "user", "content": "a"}])


@pytest.mark.faults("a chat template that makes gigabytes", "refused at 2 GiB")
def test_a_template_that_makes_gigabytes() -> None:
    with pytest.raises(DataError, match="cannot render these messages: MemoryError"):
        render_chat("{{ 'a' * 10**10 }}", [])


@pytest.mark.faults("a chat template that raises anything", "refused with its reason")
@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ '%d' % 'x' }}", "real number"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ messages", "unexpected end"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ raise_exception('no') }}", "no"),
    ],
)
def test_templates_that_raise(template: str, said: str) -> None:
    with pytest.raises(DataError, match=f"cannot render these messages: .*{said}"):
        render_chat(template, [])


def split(pattern: str) -> dict[str, Any]:
    regex = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    parts = [regex | {"invert": False}, last | {"use_regex": False}]
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": parts}}


def repeated(times: int) -> dict[str, Any]:
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    return {"normalizer": {"type": "Sequence", "normalizers": [step] * times}}


@pytest.mark.faults("a tokenizer.json on which Rust panics", "refused when it is loaded")
@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"normalizer": {"type": "Prepend", "prepend": ""}},
        split("(a+)+$"),
        split("("),
    ],
    ids=["precompiled", "prepend", "back-tracking", "no pattern"],
)
def test_tokenizers_that_panic(folder: Path, changes: dict[str, Any]) -> None:
    edit(folder / "tokenizer.json", **changes)
    with pytest.raises(DataError, match="the normalizer or pre_tokenizer of"):
        Tokenizer.load(folder)


@pytest.mark.faults("a tokenizer that makes a text 2^40 times as long", "refused")
def test_a_tokenizer_that_makes_texts_long(folder: Path) -> None:
    edit(folder / "tokenizer.json", **repeated(40))
    with pytest.raises(DataError, match="1,099,511,627,776 times as long"):
        Tokenizer.load(folder)


@pytest.mark.faults(
    "a pattern of a tokenizer that panics at one text alone", "an error of that text"
)
def test_a_tokenizer_that_panics_later(folder: Path) -> None:
    edit(folder / "tokenizer.json", **split("(q+)+$"))
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"
    for encode in (tokenizer.encode, tokenizer.encode_rendered):
        with pytest.raises(DataError, match=r"cannot be used here: .*retry-limit"):
            encode("q" * 1000 + "!")


@pytest.mark.faults("a chat template that is no text", "refused")
def test_a_template_that_is_no_text(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", chat_template={"a": 1})
    with pytest.raises(DataError, match="which is no text"):
        Tokenizer.load(folder)


def test_usual_parts_of_tokenizers_load(folder: Path) -> None:
    edit(folder / "tokenizer.json", normalizer={"type": "NFC"}, **split(r"\p{N}|\s+(?!\S)|\s+"))
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.decode(tokenizer.encode("a 12 é")) == "a 12 é"
