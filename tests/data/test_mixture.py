from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import pytest

from minimind.data.mixture import Mixture, WeightedSource, parse_data_args
from minimind.errors import ConfigError


def test_arguments_with_and_without_weights() -> None:
    assert parse_data_args(["a.jsonl", "b.jsonl"]) == [("a.jsonl", None), ("b.jsonl", None)]
    assert parse_data_args(["a.jsonl:0.7", "b:3"]) == [("a.jsonl", 0.7), ("b", 3.0)]
    assert parse_data_args(["sample:chat"]) == [("sample:chat", None)]
    assert parse_data_args(["sample:chat:2", "b:3"]) == [("sample:chat", 2.0), ("b", 3.0)]


def test_a_file_whose_name_holds_a_colon_is_a_path(tmp_path: Path) -> None:
    odd = tmp_path / "a:0.7"
    odd.touch()
    assert parse_data_args([str(odd)]) == [(str(odd), None)]
    assert parse_data_args([f"{odd}:0.5"]) == [(str(odd), 0.5)]
    assert parse_data_args(["C:data.jsonl"]) == [("C:data.jsonl", None)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "names no file"),
        (["a:1", "b"], "not to b; weight all of them"),
        (["a:0"], "the weight is 0; it must be a number above 0"),
        (["a:-1"], "above 0"),
        (["a:nan"], "above 0"),
        (["a:inf"], "above 0"),
        (["sample:chat:0"], "sample:chat:0: the weight is 0"),
        (["sample:chat:half"], "the weight 'half' is no number; write sample:chat:0.7"),
    ],
)
def test_arguments_that_cannot_be_used(values: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_data_args(values)


def test_a_weight_that_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.touch()
    with pytest.raises(ConfigError, match="the weight 'half' is no number"):
        parse_data_args([f"{path}:half"])


def _read_counts(mixture: Mixture) -> list[Counter[int]]:
    """For each source, how often each of its documents is read."""
    counts: dict[str, Counter[int]] = {}
    for document in range(len(mixture.lengths)):
        cache, number = mixture.locate(document)
        assert cache.lengths[number] == mixture.lengths[document]
        counts.setdefault(cache.path, Counter())[number] += 1
    return list(counts.values())


def test_without_weights_each_document_is_read_once(make_cache) -> None:
    caches = [make_cache(["a"] * 5, "a.jsonl"), make_cache(["b c"] * 3, "b.jsonl")]
    mixture = Mixture([WeightedSource(cache) for cache in caches], seed=0)
    assert _read_counts(mixture) == [Counter(range(5)), Counter(range(3))]
    assert mixture.times == [1.0, 1.0]


def test_weights_are_shares_of_tokens(make_cache, caplog: pytest.LogCaptureFixture) -> None:
    small = make_cache(["the river"] * 40, "small.jsonl")
    large = make_cache([f"the town {i}" * (1 + i % 5) for i in range(300)], "large.jsonl")
    sources = [WeightedSource(small, 3), WeightedSource(large, 7)]
    with caplog.at_level(logging.INFO):
        mixture = Mixture(sources, seed=1)
    small_counts, large_counts = _read_counts(mixture)
    assert set(large_counts.values()) == {1}
    assert len(large_counts) == 300
    times = mixture.times[0]
    assert set(small_counts.values()) <= {int(times), int(times) + 1}
    assert len(small_counts) == 40
    share = sum(small.lengths[d] * n for d, n in small_counts.items()) / mixture.lengths.sum()
    assert share == pytest.approx(0.3, abs=0.003)
    assert f"small.jsonl ×{times:.1f}, large.jsonl ×1.0" in caplog.text


def test_weights_that_match_the_sizes_read_everything_once(make_cache) -> None:
    caches = [make_cache(["a b"] * n, f"{n}.jsonl") for n in (7, 21)]
    tokens = [cache.num_tokens for cache in caches]
    sources = [WeightedSource(c, n / 7) for c, n in zip(caches, tokens, strict=True)]
    assert _read_counts(Mixture(sources, 0)) == [Counter(range(7)), Counter(range(21))]


def test_the_fraction_depends_on_the_seed_alone(make_cache) -> None:
    caches = [
        make_cache([f"n {i}" for i in range(30)], "a.jsonl"),
        make_cache(["b"] * 99, "b.jsonl"),
    ]
    sources = [WeightedSource(cache, 1) for cache in caches]
    first, same, other = (_read_counts(Mixture(sources, seed)) for seed in (0, 0, 1))
    assert first == same != other


def test_the_fingerprint_sees_data_weights_and_order(make_cache) -> None:
    a, b = make_cache(["a"], "a.jsonl"), make_cache(["b"], "b.jsonl")
    mixtures = [
        [WeightedSource(a)],
        [WeightedSource(b)],
        [WeightedSource(a), WeightedSource(b)],
        [WeightedSource(b), WeightedSource(a)],
        [WeightedSource(a, 1), WeightedSource(b, 1)],
        [WeightedSource(a, 1), WeightedSource(b, 2)],
    ]
    prints = [Mixture(sources, 0).fingerprint for sources in mixtures]
    assert len(set(prints)) == len(prints)
    assert Mixture([WeightedSource(a)], 0).fingerprint == prints[0]


@pytest.mark.parametrize("weights", [(1e9, 1.0), (1e300, 1e-300)])
def test_weights_of_an_epoch_without_end_are_refused(make_cache, weights: tuple[float, float]):
    caches = [make_cache(["a b"] * 9, "much.jsonl"), make_cache(["a"] * 3, "little.jsonl")]
    sources = [WeightedSource(c, w) for c, w in zip(caches, weights, strict=True)]
    with pytest.raises(ConfigError, match=r"little\.jsonl.*weights that are closer"):
        Mixture(sources, 0)


def test_some_weights_only(make_cache) -> None:
    cache = make_cache(["a"])
    with pytest.raises(ConfigError, match="all of them or to none"):
        Mixture([WeightedSource(cache, 1), WeightedSource(cache)], 0)
    with pytest.raises(ConfigError, match="one or more"):
        Mixture([], 0)
