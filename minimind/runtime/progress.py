"""Counts the main thread's progress, so that the heartbeat sees whether the thread still moves."""

from __future__ import annotations


class Progress:
    """Holds the count of this process."""

    marks = 0


def mark_progress() -> None:
    """Counts one movement of the main thread. Work that waits at one place of the code again and
    again, without collectives, calls it each time: a step of generation or a batch of validation.
    """
    Progress.marks += 1
