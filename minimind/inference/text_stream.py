"""Turns tokens, one at a time, into text of whole characters, ended by stop strings."""

from __future__ import annotations

from collections.abc import Sequence

from minimind.data.tokenizer import Tokenizer


class TextStream:
    """Builds the text of one sequence. Text that may begin a stop string is held back until that is
    decided."""

    def __init__(
        self, tokenizer: Tokenizer, stops: Sequence[str], skips_special: bool = True
    ) -> None:
        self._decoder = tokenizer.stream_decoder(skips_special)
        self._stops = stops
        self._held = ""
        self.stopped = False
        """True once a stop string has appeared; no text follows."""

    def push(self, token: int) -> str:
        """Adds a token and gives the text that is certain by now, possibly ""."""
        return self._take(self._decoder.push(token), is_last=False)

    def flush(self) -> str:
        """Gives the rest of the text at its end; an unfinished character becomes U+FFFD."""
        return self._take(self._decoder.flush(), is_last=True)

    def _take(self, new: str, is_last: bool) -> str:
        if self.stopped:
            return ""
        text, self.stopped = _cut_at_stop(self._held + new, self._stops)
        safe = len(text)
        if not self.stopped and not is_last:
            safe -= possible_start(text, self._stops)
        self._held = text[safe:]
        return text[:safe]


def _cut_at_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Gives the text before the first stop string, and whether there is one."""
    ends = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return (text[: min(ends)], True) if ends else (text, False)


def possible_start(text: str, stops: Sequence[str]) -> int:
    """Counts the characters at the end of `text` that are the beginning of one of `stops`."""
    longest = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:length]):
                longest = length
                break
    return longest
