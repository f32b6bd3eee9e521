"""Decoding in C++ against the same model's forward in PyTorch."""

from __future__ import annotations

import itertools
import logging
import platform
from collections.abc import Sequence
from typing import Any, cast

import pytest
import torch
from cpu_decoding import (
    CAPACITY,
    CPU,
    EXPERTS_16,
    by_cpp,
    by_torch,
    model_of,
    needs_compiler,
    nexts,
    prompted,
)
from minimind_kernels import backend
from small_engines import engine_of, request
from small_models import EXPERTS, FAMILIES, random_documents
from torch import Tensor

from minimind.inference import cpu_library
from minimind.inference.cpu_decode import CpuDecode
from minimind.model.cached_attention import Piece
from minimind.model.feed_forward import SwiGLU
from minimind.model.kv_cache import KVCache

pytestmark = pytest.mark.usefixtures("compiling")


@needs_compiler
@pytest.mark.parametrize("batch", [1, 3, 41])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False, "vocab_size": 131},
        {"head_dim": 48, "num_key_value_heads": 4, "hidden_size": 80, "intermediate_size": 112},
        {"num_attention_heads": 6, "num_key_value_heads": 2},
        {"num_key_value_heads": 1, "rope_scaling": "yarn", "max_position_embeddings": 4096},
        *EXPERTS_16,
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_forward(family: str, changes: dict[str, Any], batch: int) -> None:
    """The same logits, and the same keys and values in the cache."""
    model = model_of(family, **changes)
    lengths = [2 + 11 * i % 50 for i in range(batch)]
    caches = [prompted(model, lengths) for _ in range(2)]
    ids, pieces = nexts(lengths)
    expected = by_torch(model, caches[0], ids, pieces)
    found = by_cpp(CpuDecode(model, caches[1]), ids, pieces)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    for ours, theirs in zip(caches[1].layers, caches[0].layers, strict=True):
        torch.testing.assert_close(ours.keys_SKCH, theirs.keys_SKCH, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.values_SKCH, theirs.values_SKCH, atol=1e-5, rtol=1e-5)


@needs_compiler
def test_bf16_errs_no_more_than_pytorch() -> None:
    model = model_of().to(torch.bfloat16)
    lengths = [2 + 11 * i % 50 for i in range(9)]
    ids, pieces = nexts(lengths)
    eager = by_torch(model, prompted(model, lengths), ids, pieces)
    found = by_cpp(CpuDecode(model, prompted(model, lengths)), ids, pieces)
    model = model.double()
    expected = by_torch(model, prompted(model, lengths), ids, pieces)
    assert (found - expected).norm() <= 1.5 * (eager - expected).norm()


@needs_compiler
@pytest.mark.parametrize("changes", [{}, EXPERTS_16[0]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prompts_are_read_in_pieces(dtype: torch.dtype, changes: dict[str, Any]) -> None:
    """A prompt read at once, in two pieces and token by token gives the same bits, beside others;
    and they are the forward's."""
    model = model_of(vocab_size=131, **changes).to(dtype)
    lengths = [37, 1, 20]
    documents = random_documents(lengths)

    def read(cuts: Sequence[int]) -> tuple[Tensor, KVCache]:
        cache = KVCache(model.config, 6, CAPACITY, dtype=dtype, device=CPU)
        decoder, logits = CpuDecode(model, cache), {}
        for start, end in itertools.pairwise(cuts):
            parts = [(i, d, min(end, len(d))) for i, d in enumerate(documents) if len(d) > start]
            pieces = [Piece(slot=2 * i, start=start, count=last - start) for i, _, last in parts]
            ids = [id for _, document, last in parts for id in document[start:last]]
            ends = [sum(piece.count for piece in pieces[: at + 1]) - 1 for at in range(len(pieces))]
            found = cast(Tensor, decoder.decode(ids, pieces, ends))
            logits |= {i: row for (i, _, _), row in zip(parts, found, strict=True)}
        return torch.stack([logits[i] for i in range(len(documents))]), cache

    whole, cache = read([0, 64])
    for cuts in ([0, 13, 64], list(range(65))):
        found, found_cache = read(cuts)
        assert torch.equal(found, whole)
        for ours, theirs in zip(found_cache.layers, cache.layers, strict=True):
            assert torch.equal(ours.keys_SKCH[:, :, :1], theirs.keys_SKCH[:, :, :1])
    model = model.double()
    for document, logits in zip(documents, whole, strict=True):
        pieces = [Piece(slot=0, start=0, count=len(document))]
        alone = KVCache(model.config, 1, CAPACITY, dtype=torch.float64, device=CPU)
        expected = by_torch(model, alone, list(document), pieces)[-1]
        limit = 1e-5 if dtype == torch.float32 else 0.02
        assert (logits - expected).norm() < limit * expected.norm()


@needs_compiler
def test_no_logits_are_asked_for() -> None:
    model = model_of()
    found = CpuDecode(model, prompted(model, [5])).decode(
        [3], [Piece(slot=0, start=5, count=1)], []
    )
    assert found.shape == (0, model.config.vocab_size)


@needs_compiler
@pytest.mark.parametrize("changes", [{}, EXPERTS_16[2]])
def test_company_changes_no_bit(changes: dict[str, Any]) -> None:
    model = model_of(**changes)
    lengths = [2 + 11 * i % 50 for i in range(37)]
    ids, pieces = nexts(lengths)
    together = by_cpp(CpuDecode(model, prompted(model, lengths)), ids, pieces)
    cache = prompted(model, lengths)
    decoder = CpuDecode(model, cache)
    for i in (0, 5, 36):
        alone = by_cpp(decoder, ids[i : i + 1], pieces[i : i + 1])
        assert torch.equal(alone, together[i : i + 1])


@needs_compiler
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_share_the_work(threads: int) -> None:
    model = model_of(vocab_size=131)
    lengths = [9, 30, 4]
    ids, pieces = nexts(lengths)
    one = by_cpp(CpuDecode(model, prompted(model, lengths)), ids, pieces)
    torch.set_num_threads(threads)
    several = by_cpp(CpuDecode(model, prompted(model, lengths)), ids, pieces)
    assert torch.equal(one, several)


@needs_compiler
def test_changed_weights_are_noticed() -> None:
    model = model_of()
    cache = prompted(model, [5])
    decoder = CpuDecode(model, cache)
    ids, pieces = nexts([5])
    by_cpp(decoder, ids, pieces)
    with torch.no_grad():
        model.norm.weight.mul_(2)
        model.layers[0].mlp.down_proj.weight.mul_(-1)
    weight = model.get_parameter("layers.1.self_attn.o_proj.weight")
    weight.data = -weight.data
    found = by_cpp(decoder, ids, pieces)
    torch.testing.assert_close(found, by_torch(model, cache, ids, pieces), atol=2e-5, rtol=1e-5)


@needs_compiler
@pytest.mark.parametrize("max_batch", [1, 5])
def test_the_engine_says_the_same_with_it(max_batch: int) -> None:
    model = model_of()
    prompts = random_documents([3, 17, 1, 40, 8, 2, 25])
    requests = [request(ids, new=20, logprobs=2) for ids in prompts]

    def tokens(fast_decode: bool) -> list[tuple[int, ...]]:
        engine = engine_of(model, max_batch, CAPACITY, fast_decode=fast_decode)
        return [completion.ids for completion in engine.generate(requests)]

    assert tokens(True) == tokens(False)


class OtherFeedForward(SwiGLU):
    """A variant that the C++ code does not know."""


@needs_compiler
def test_what_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CpuDecode.can_run(model_of())
    assert not CpuDecode.can_run(model_of(head_dim=12))
    assert not CpuDecode.can_run(model_of(head_dim=144))
    assert not CpuDecode.can_run(model_of(**EXPERTS[0]))
    assert not CpuDecode.can_run(model_of().double())
    other = model_of()
    other.layers[1].mlp = OtherFeedForward(other.config.hidden_size, 32)
    assert not CpuDecode.can_run(other)
    monkeypatch.setattr(backend, "compile_setting", lambda: "0")
    assert not CpuDecode.can_run(model_of())


def test_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cpu_library.load_library.cache_clear()
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match=r"cannot be compiled: there is no C\+\+ compiler"):
        CpuDecode.can_run(model_of())
    monkeypatch.setattr(backend, "compile_setting", lambda: "auto")
    with caplog.at_level(logging.INFO):
        assert not CpuDecode.can_run(model_of())
    assert "decoding in plain PyTorch" in caplog.text


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86's levels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("level", "extension"),
    [("x86-64", "sse2"), ("x86-64-v3", "avx2"), ("x86-64-v4", "avx512vl")],
)
def test_other_cpus(
    monkeypatch: pytest.MonkeyPatch, level: str, extension: str, dtype: torch.dtype
) -> None:
    """What another CPU would compile; this one runs it if it has the extension."""
    if extension not in cpu_library._cpu().split():
        pytest.skip(f"this CPU has no {extension}")
    flags = [f"-march={level}" if f.startswith("-march") else f for f in cpu_library._FLAGS]
    monkeypatch.setattr(cpu_library, "_FLAGS", flags)
    cpu_library.load_library.cache_clear()
    model = model_of(vocab_size=131, head_dim=48).to(dtype)
    lengths = [2 + 11 * i % 50 for i in range(5)]
    ids, pieces = nexts(lengths)
    found = by_cpp(CpuDecode(model, prompted(model, lengths)), ids, pieces)
    expected = by_torch(model.double(), prompted(model, lengths), ids, pieces)
    limit = 1e-5 if dtype == torch.float32 else 0.02
    assert (found - expected).norm() < limit * expected.norm()
