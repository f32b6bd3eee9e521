"""What a stage cannot do without, for tests that go through all stages."""

from __future__ import annotations

from typing import Any

REQUIRED_OPTIONS: dict[str, dict[str, Any]] = {"distill": {"teacher": "somewhere"}}
