"""Holds the turns and tools that tests build rows of."""

from __future__ import annotations

from typing import Any

from minimind.stages import STAGES

USER = {"role": "user", "content": "q"}
SAID = {"role": "assistant", "content": "a"}
CALL = {"name": "f", "arguments": {}}
TOOLS = [{"name": "f", "parameters": {}}]
FORMATS = {stage.data_format.name: stage.data_format for stage in STAGES.values()}


def chat(*turns: Any, **more: Any) -> dict[str, Any]:
    return {"conversations": list(turns), **more}
