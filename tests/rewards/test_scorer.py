"""Rewards with weights: sums, names, and what happens to one that cannot be computed."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scored_rollouts import rollout
from training_runs import ROOT

from minimind.errors import ConfigError, TrainingError
from minimind.rewards.scorer import Scorer

FUNCTIONS = """
    import os
    import time

    def odd(rollout):
        if rollout.prompt == "hang":
            time.sleep(600)
        if rollout.prompt == "die":
            os._exit(1)
        if rollout.prompt == "raise":
            raise KeyError("unit")
        values = {"nan": float("nan"), "inf": float("inf"), "none": None, "text": "1", "yes": True,
                  "int": 3, "huge": 10 ** 400}
        return values.get(rollout.prompt, 0.5)

    def length(rollout, factor=1):
        return factor * len(rollout.answer)
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(textwrap.dedent(FUNCTIONS))
    return f"{tmp_path}/own.py"


@pytest.fixture
def build() -> Iterator[Callable[..., Scorer]]:
    scorers = []

    def build(rewards: dict[str, float], **options: Any) -> Scorer:
        scorers.append(Scorer(rewards, **{"num_workers": 2, "timeout_s": 1.0, **options}))
        return scorers[-1]

    yield build
    for scorer in scorers:
        scorer.close()


Build = Callable[..., Scorer]


def test_a_total_is_the_weighted_sum_of_its_parts(build: Build, own: str) -> None:
    functions = (f"{own}:length", f"{own}:length(factor=10)", "exact_match")
    scorer = build(dict(zip(functions, (1.0, 0.5, 2), strict=True)), timeout_s=30.0)
    scorer.check()
    assert scorer.reward_names == ["length", "length_2", "exact_match"]
    right, wrong = scorer.score([rollout("15.", gt="15"), rollout("It is 15.", gt="15")])
    assert right.parts == {"length": 3.0, "length_2": 30.0, "exact_match": 1.0}
    assert right.total == 3 + 15 + 2
    assert wrong.parts == {"length": 9.0, "length_2": 90.0, "exact_match": 0.0}
    assert wrong.total == 9 + 45
    assert scorer.score([]) == []


def test_scores_keep_the_order_of_rollouts(build: Build, own: str) -> None:
    scores = build({f"{own}:length": 1}, timeout_s=30.0).score(
        [rollout("x" * n) for n in range(100)]
    )
    assert [one.total for one in scores] == list(range(100))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("raise", r"KeyError: 'unit' \(own\.py:\d+: raise KeyError\(\"unit\"\)\)\. Mend"),
        ("hang", r"took longer than .* s\. Mend .* raise reward_timeout_s above 1,"),
        ("die", r"its process ended with status 1\."),
        ("nan", "it returned nan where a finite number is expected"),
        ("inf", "it returned inf"),
        ("none", "it returned None"),
        ("text", "it returned a value of type str"),
        ("huge", "it returned 1000"),
    ],
)
def test_stop_names_the_reward_what_happened_and_the_prompt(
    build: Build, own: str, prompt: str, message: str
) -> None:
    scorer = build({f"{own}:odd": 1.0})
    assert scorer.score([rollout(prompt="fine")])[0].total == 0.5
    with pytest.raises(TrainingError, match=message) as error:
        scorer.score([rollout(prompt="fine"), rollout(prompt=prompt), rollout(prompt="fine")])
    assert f'the reward {own}:odd of the prompt "{prompt}": ' in str(error.value)
    assert "--set on_reward_error=skip" in str(error.value)
    assert scorer.score([rollout(prompt="yes"), rollout(prompt="int")])[1].total == 3


def test_skip_leaves_a_rollout_without_a_total_and_warns_at_most_five_times(
    build: Build, own: str, caplog: pytest.LogCaptureFixture
) -> None:
    scorer = build({f"{own}:odd": 1.0, "exact_match": 1.0}, on_error="skip")
    prompts = ["fine", "nan", "yes", "raise", "hang", "die", "none"]
    with caplog.at_level(logging.WARNING):
        scores = scorer.score([rollout("15", prompt, gt="15") for prompt in prompts])
    assert [one.total for one in scores] == [1.5, None, 2.0, None, None, None, None]
    assert scores[1].parts == {"odd": None, "exact_match": 1.0}
    assert len(caplog.messages) == 5
    assert all("the sample is skipped" in message for message in caplog.messages)
    caplog.clear()
    scorer.score([rollout(prompt="nan"), rollout(prompt="inf"), rollout(prompt="fine")])
    assert caplog.messages == ["rewards that could not be computed: 2 now, 7 in this run"]


def test_a_long_prompt_is_shortened(build: Build, own: str) -> None:
    scorer = build({"minimind.rewards.shipped:length_window(least=3, most=2)": 1.0})
    with pytest.raises(TrainingError) as error:
        scorer.score([rollout(prompt="so\n long " * 1000)])
    assert "so long so long" in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ({}, "no reward is given; the shipped ones are exact_match, length_window"),
        ({"exact_mach": 1.0}, r"did you mean exact_match\?"),
        ({"exact_match": math.nan}, "the weight of exact_match is nan"),
        ({"exact_match": "1"}, "the weight of exact_match is '1'"),
    ],
)
def test_mistakes_seen_at_once(rewards: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Scorer(rewards)
    with pytest.raises(ConfigError, match=r"did you mean skip\?"):
        Scorer({"exact_match": 1.0}, on_error="skpi")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("exact_match(prt='number')", r"has no argument prt \(did you mean part\?\)"),
        ("exact_match(part='numbre')", "part='numbre': it must be 'answer' or 'number'"),
        ("reward_model(folder='/nowhere')", "/nowhere is no folder of a Hugging Face model"),
        ("reward_model", "missing a required argument: 'folder'"),
    ],
)
def test_a_check_finds_mistakes_before_a_run(build: Build, reward: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build({reward: 1.0}, timeout_s=60.0).check()


def test_a_process_that_calls_rewards_imports_no_pytorch() -> None:
    code = (
        "import sys, minimind.rewards.scorer, minimind.runtime.function_worker\n"
        "sys.exit(bool({'torch', 'numpy', 'minimind.types'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == 0
