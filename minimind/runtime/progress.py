"""Counts how far the main thread has come, for those who ask whether it still moves."""

from __future__ import annotations


class Progress:
    """Holds the count of this process."""

    marks = 0


def mark_progress() -> None:
    """Says that the main thread has moved. Work that waits at one place of the code again and
    again, without collectives, calls it each time: a step of generation, a batch of validation."""
    Progress.marks += 1
