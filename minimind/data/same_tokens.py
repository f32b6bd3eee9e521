"""Whether two tokenizers mean the same by an id: weights know a token by its number alone."""

from __future__ import annotations

from pathlib import Path

from minimind.data.tokenizer import TOKENIZER_FILE, Tokenizer
from minimind.errors import ConfigError


def check_same_tokens(tokenizer: Tokenizer, other: Tokenizer, advice: str) -> None:
    """Raises ConfigError where an id is other bytes to one of the two; its message ends with
    `advice`. Merges and chat templates may differ: they decide which ids a text becomes, not what
    an id is."""

    def spell(side: Tokenizer, id: int) -> bytes:
        return side.token_bytes([id], skip_special=False)

    size = max(tokenizer.vocab_size, other.vocab_size)
    differing = [id for id in range(size) if spell(tokenizer, id) != spell(other, id)]
    if differing:
        id = differing[0]
        mine, theirs = (spell(side, id) or "no token" for side in (tokenizer, other))
        raise ConfigError(
            f"the tokenizer {tokenizer.origin} is another than that of {other.origin}: token {id} "
            f"is {mine!r} to the first and {theirs!r} to the second, and {len(differing):,} of "
            f"{size:,} ids differ in all. {advice}"
        )


def check_folder_tokens(tokenizer: Tokenizer, folder: Path, advice: str) -> None:
    """`check_same_tokens` with the tokenizer in a model's folder; a folder without one says
    nothing. Raises DataError where it cannot be read."""
    if (folder / TOKENIZER_FILE).is_file():
        check_same_tokens(tokenizer, Tokenizer.load(folder), advice)
