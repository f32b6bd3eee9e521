"""Holds a rotary scaling of Llama 3's kind."""

from __future__ import annotations

from typing import Any

LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
