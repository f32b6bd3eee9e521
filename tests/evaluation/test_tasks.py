"""lm-evaluation-harness on tasks in files of the test's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import random_model, reference_logits, small_config

from minimind.data.tokenizer import Tokenizer
from minimind.errors import ConfigError
from minimind.model.transformer import Transformer

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness (extra `eval`)")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from minimind.evaluation.tasks import HarnessModel, run_tasks
from minimind.model.state_dict import save_hf_folder

ROWS = [
    {"question": "6 + 9 =", "choices": ["15", "3", "about 12"], "gold": 0, "text": "数到 3。"},
    {"question": "塔恩的人养什么？", "choices": ["鹅", "一匹马", "?"], "gold": 1, "text": "a b c"},
    {"question": "Is it so?", "choices": ["yes", "no", "maybe"], "gold": 2, "text": "x " * 40},
]
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
"""
CHOICE = """\
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
ROLLING = """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: byte_perplexity}, {metric: bits_per_byte}]
"""
ANSWER = """\
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{text}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 5}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Transformer:
    config = small_config(vocab_size=tokenizer.vocab_size, max_position_embeddings=48)
    return random_model(config).eval()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of three tasks over the rows."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for name, body in (("own_choice", CHOICE), ("own_text", ROLLING), ("own_answer", ANSWER)):
        text = TASK.format(name=name, data=data) + body
        (tasks / f"{name}.yaml").write_text(text, encoding="utf-8")
    return tasks


def log_prob(model: Transformer, before: list[int], after: list[int]) -> float:
    logits = reference_logits(model, before + after)[len(before) - 1 : -1]
    return logits.log_softmax(-1)[torch.arange(len(after)), after].sum().item()


def test_local_tasks(model: Transformer, tokenizer: Tokenizer, folder: Path) -> None:
    names = ["own_choice", "own_text", "own_answer"]
    found = run_tasks(model, tokenizer, names, folder=folder)
    assert set(found) == set(names)

    def score(row: dict[str, Any], choice: str) -> float:
        prompt = tokenizer.encode_document(row["question"])
        whole = tokenizer.encode_document(f"{row['question']} {choice}")
        return log_prob(model, prompt, whole[len(prompt) :])

    right = normalised = 0
    for row in ROWS:
        scores = [score(row, choice) for choice in row["choices"]]
        per_character = [s / len(c) for s, c in zip(scores, row["choices"], strict=True)]
        right += scores.index(max(scores)) == row["gold"]
        normalised += per_character.index(max(per_character)) == row["gold"]
    assert found["own_choice"]["acc,none"] == pytest.approx(right / 3)
    assert found["own_choice"]["acc_norm,none"] == pytest.approx(normalised / 3)
    assert found["own_text"]["bits_per_byte,none"] > 0
    assert found["own_answer"]["exact_match,none"] == 0


def test_a_text_beyond_the_context_is_scored_in_windows(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    text = "words and numbers 1 2 3 " * 12
    ids = tokenizer.encode(text)
    assert len(ids) > 2 * 48
    harness = HarnessModel(model, tokenizer)
    requests = [
        Instance("loglikelihood_rolling", {}, (shown,), i) for i, shown in enumerate((text, "a"))
    ]
    whole, short = harness.loglikelihood_rolling(requests, disable_tqdm=True)
    # 47 tokens a window, each after the last token of the one before; what is left over looks back
    # as far as it can.
    document, left = [*tokenizer.document_start, *ids], len(ids) % 47
    expected = log_prob(model, document[-48:-left], document[-left:])
    for at in range(0, len(ids) - left, 47):
        expected += log_prob(model, document[at : at + 1], document[at + 1 : at + 48])
    assert whole == pytest.approx(expected, rel=1e-5)
    assert short == pytest.approx(log_prob(model, document[:1], tokenizer.encode("a")), abs=1e-3)


def test_what_is_too_long_loses_its_beginning(model: Transformer, tokenizer: Tokenizer) -> None:
    harness = HarnessModel(model, tokenizer)
    long, after = tokenizer.encode("count to ten " * 30), tokenizer.encode(" now")
    found = harness._loglikelihood_tokens([(("", ""), long, after)], disable_tqdm=True)
    kept = long[-(48 - len(after)) :]
    assert found[0][0] == pytest.approx(log_prob(model, kept, after), abs=1e-3)
    wanted = {"until": [], "max_gen_toks": 8}
    request = Instance("generate_until", {}, ("count to ten " * 30, wanted), 0)
    assert len(harness.generate_until([request], disable_tqdm=True)) == 1


def test_the_harness_scores_an_exported_folder_as_it_scores_the_model(
    model: Transformer, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Its own backend of transformers, on texts, by its defaults."""
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    save_hf_folder(tmp_path, model.config, weights, torch.float32)
    tokenizer.save(tmp_path)
    backend: Any = HFLM  # its decorator hides the parameters from type checkers
    theirs = backend(pretrained=str(tmp_path), device="cpu", dtype="float32", batch_size=1)
    ours = HarnessModel(model, tokenizer)
    pairs = [("6 + 9 =", " 15"), ("塔恩的人养什么？", "鹅"), ("", "a b c")]
    # Before a whole text the harness puts a bos of its own, whatever the tokenizer puts there.
    for kind, asked, add_bos in (
        ("loglikelihood", pairs, None),
        ("loglikelihood_rolling", [("Count to 3: 1, 2, 3.",), ("从1数到3。",)], False),
    ):
        theirs.add_bos_token = add_bos
        requests = [Instance(kind, {}, one, i) for i, one in enumerate(asked)]  # type: ignore[arg-type]
        found, expected = (
            torch.tensor(getattr(side, kind)(requests, disable_tqdm=True))
            for side in (ours, theirs)
        )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_a_task_that_there_is_not(model: Transformer, tokenizer: Tokenizer, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"--tasks nonsense: the harness has no such task"):
        run_tasks(model, tokenizer, ["own_choice", "nonsense"], folder=folder)


def test_a_chat_is_asked_in_its_template(model: Transformer, tokenizer: Tokenizer) -> None:
    harness = HarnessModel(model, tokenizer, is_chat=True)
    text = harness.apply_chat_template([{"role": "user", "content": "hi"}])
    ids = harness.tok_encode(text)
    assert ids[0] == 1 == tokenizer.bos_id
    assert ids.count(1) == 2
    assert tokenizer.decode(ids, skip_special=False) == text
