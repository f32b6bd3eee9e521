"""Lists the options without which a stage cannot start, for tests that go through all stages."""

from __future__ import annotations

from typing import Any

SPREAD: dict[str, Any] = {"rewards": {"repetition_penalty(ngram=1)": 1.0}}
"""Options of stages that answer prompts, with which even answers of random weights get different
rewards."""

REQUIRED_OPTIONS: dict[str, dict[str, Any]] = {"distill": {"teacher": "somewhere"}}
