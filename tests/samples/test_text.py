from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from minimind.data.tokenizer import Tokenizer
from minimind.samples.files import (
    TEXT_DATA,
    sample_data_path,
    train_sample_tokenizer,
    write_sample,
)
from minimind.samples.text import SAMPLE_PROMPTS, load_sample_tokenizer
from minimind.samples.world import HELD_OUT_COUNTS, HELD_OUT_SUMS


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("sample")
    found = {}
    for split in ("train", "val"):
        path = folder / f"{split}.jsonl"
        write_sample(path, split)
        wanted = TEXT_DATA.train_bytes if split == "train" else TEXT_DATA.val_bytes
        assert 0 <= path.stat().st_size - wanted < 1000
        found[split] = [json.loads(line)["text"] for line in path.open(encoding="utf-8")]
    return found


def test_no_text_is_in_both_splits(texts: dict[str, list[str]]) -> None:
    assert not set(texts["train"]) & set(texts["val"])


def test_all_sums_are_right_and_held_out_ones_absent(texts: dict[str, list[str]]) -> None:
    sum_of = re.compile(
        r"(\d+)(?: \+ | plus | 加 )(\d+)(?: = | is | 等于 |\? It is |是多少？是 )(\d+)"
    )
    gift_of = re.compile(
        r"had (\d+) .*? gave h\w+ (\d+) more. Now .*? had (\d+)"
        r"|有(\d+)个.*?又给了.(\d+)个。现在.*?有(\d+)个"
    )
    for split, is_train in (("train", True), ("val", False)):
        sums = [tuple(map(int, m)) for text in texts[split] for m in sum_of.findall(text)]
        for match in (m for text in texts[split] for m in gift_of.findall(text)):
            sums.append(tuple(int(number) for number in match if number))
        assert len(sums) > 500
        assert all(a + b == c for a, b, c in sums)
        assert bool({(a, b) for a, b, _ in sums} & HELD_OUT_SUMS) != is_train


def test_counts_are_right_and_held_out_ones_absent(texts: dict[str, list[str]]) -> None:
    count = re.compile(r"(?:Count from (\d+) to (\d+): |从(\d+)数到(\d+)：)([^.。]*)")
    seen = set()
    for text in texts["train"]:
        for *ends, numbers in count.findall(text):
            first, last = (int(end) for end in ends if end)
            assert re.split(", |，", numbers) == [str(n) for n in range(first, last + 1)]
            seen.add((first, last))
    assert len(seen) > 500
    assert not seen & HELD_OUT_COUNTS


def test_both_languages_have_about_half_of_the_rows(texts: dict[str, list[str]]) -> None:
    chinese = sum(bool(re.search("[\u4e00-\u9fff]", text)) for text in texts["train"])
    assert 0.4 < chinese / len(texts["train"]) < 0.6


@pytest.mark.parametrize("prompt", SAMPLE_PROMPTS, ids=lambda prompt: prompt.prompt)
def test_prompts_are_answered_by_the_training_text_unless_held_out(
    texts: dict[str, list[str]], prompt
) -> None:
    answered = any(prompt.prompt + prompt.expected in text for text in texts["train"])
    assert answered != prompt.is_held_out


@pytest.mark.parametrize("prompt", SAMPLE_PROMPTS, ids=lambda prompt: prompt.prompt)
def test_an_answer_starts_with_a_token_of_its_own(tokenizer: Tokenizer, prompt) -> None:
    """Else the model would be asked to go on from a token it never saw there."""
    ids = tokenizer.encode(prompt.prompt)
    assert tokenizer.encode(prompt.prompt + prompt.expected)[: len(ids)] == ids


def test_the_file_in_the_cache_is_written_once_and_whole(cache_dir: Path) -> None:
    path = sample_data_path("val")
    assert path.is_relative_to(cache_dir)
    written = path.stat().st_mtime_ns
    assert sample_data_path("val") == path
    assert path.stat().st_mtime_ns == written
    names = {entry.name for entry in path.parent.iterdir()}
    assert names == {path.name, path.with_suffix(".lock").name}


def test_the_shipped_tokenizer_can_be_made_again(tmp_path: Path) -> None:
    train_sample_tokenizer().save(tmp_path)
    shipped = Path(load_sample_tokenizer.__code__.co_filename).parent / "tokenizer"
    names = sorted(path.name for path in shipped.iterdir())
    assert names == ["tokenizer.json", "tokenizer_config.json"]
    for name in names:
        assert (tmp_path / name).read_bytes() == (shipped / name).read_bytes()
    assert load_sample_tokenizer().vocab_size == 1577
