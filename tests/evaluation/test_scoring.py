"""Scores of packed documents against the model's fp64 form, one document at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import random_documents, random_model, reference_logits, small_config

from minimind.errors import DataError
from minimind.evaluation.scoring import continuation, score_documents


def test_a_continuation_scores_what_the_model_gives_it() -> None:
    model = random_model(small_config()).eval()
    lengths = [(3, 4), (1, 9), (20, 1), (7, 7), (2, 30)]
    documents = [
        (random_documents([n], seed=2 * i)[0], random_documents([m], seed=2 * i + 1)[0])
        for i, (n, m) in enumerate(lengths)
    ]
    scores = score_documents(model, [continuation(*d) for d in documents], pad_id=0)
    for i, (prompt, answer) in enumerate(documents):
        logits = reference_logits(model, prompt + answer)[len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1)[range(len(answer)), answer].sum().item()
        assert scores.log_probs[i] == pytest.approx(expected, abs=1e-3)
        assert scores.is_greedy[i] == (logits.argmax(-1).tolist() == answer)


def test_the_models_own_answer_is_greedy() -> None:
    model = random_model(small_config()).eval()
    ids = random_documents([5])[0]
    for _ in range(4):
        ids.append(int(reference_logits(model, ids)[-1].argmax()))
    other = [*ids[:-1], (ids[-1] + 1) % 97]
    samples = [continuation(x[:5], x[5:]) for x in (ids, other)]
    assert score_documents(model, samples, pad_id=0).is_greedy.tolist() == [True, False]


def test_scores_do_not_depend_on_who_shares_the_row() -> None:
    model = random_model(small_config()).eval()
    documents = random_documents([1 + i % 50 for i in range(90)])
    samples = [continuation(d[:1], d[1:]) for d in documents]
    together = score_documents(model, samples, pad_id=0)
    alone = np.array([score_documents(model, [s], pad_id=0).log_probs[0] for s in samples[:6]])
    torch.testing.assert_close(together.log_probs[:6], alone, atol=1e-4, rtol=1e-5)


def test_nothing_to_score() -> None:
    scores = score_documents(random_model(small_config()), [], pad_id=0)
    assert len(scores.log_probs) == 0


def test_a_document_beyond_the_context_is_named() -> None:
    model = random_model(small_config(max_position_embeddings=16))
    samples = [continuation([1], [2]), continuation([1] * 10, [2] * 10)]
    with pytest.raises(DataError, match=r"document 2 has 20 tokens, the model's context 16"):
        score_documents(model, samples, pad_id=0)
