"""What a stage cannot do without, for tests that go through all stages."""

from __future__ import annotations

from typing import Any

SPREAD: dict[str, Any] = {"rewards": {"repetition_penalty(ngram=1)": 1.0}}
"""Options of stages that answer prompts: even answers of random weights are worth more and less."""

REQUIRED_OPTIONS: dict[str, dict[str, Any]] = {"distill": {"teacher": "somewhere"}}
