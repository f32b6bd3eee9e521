"""Compares the tokens of two tokenizers, since weights know a token only by its id."""

from __future__ import annotations

from pathlib import Path

from minimind.data.tokenizer import TOKENIZER_FILE, Tokenizer
from minimind.errors import ConfigError, DataError


def check_same_tokens(tokenizer: Tokenizer, other: Tokenizer, advice: str) -> None:
    """Raises ConfigError, whose message ends with `advice`, where an id stands for different bytes
    in the two tokenizers, or a document begins with different tokens. Merges, normalizers and chat
    templates may differ: they decide which ids a text becomes, not what an id means."""

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
    if tokenizer.bos_id != other.bos_id:
        mine, theirs = (_describe(side, side.bos_id) for side in (tokenizer, other))
        raise ConfigError(
            f"the tokenizer {tokenizer.origin} begins a document with {mine}, that of "
            f"{other.origin} with {theirs}. {advice}"
        )


def check_folder_tokens(tokenizer: Tokenizer, folder: Path, advice: str) -> None:
    """Compares `tokenizer` with the one in a model folder by `check_same_tokens`; a folder without
    one passes. Raises ConfigError, with `advice`, also where that tokenizer cannot be read."""
    if not has_tokenizer(folder):
        return
    try:
        other = Tokenizer.load(folder)
    except DataError as error:
        raise ConfigError(f"{error}, so that the two cannot be compared. {advice}") from None
    check_same_tokens(tokenizer, other, advice)


def describe_other_end(tokenizer: Tokenizer, folder: Path) -> str:
    """Says that the tokenizer in a model folder ends a document with another token; "" where it
    ends with the same one or is missing. Raises DataError where it cannot be read."""
    other = Tokenizer.load(folder) if has_tokenizer(folder) else tokenizer
    if other.eos_id == tokenizer.eos_id:
        return ""
    mine, theirs = (_describe(side, side.eos_id) for side in (tokenizer, other))
    return (
        f"the tokenizer {tokenizer.origin} ends a document with {mine}, that of {other.origin} "
        f"with {theirs}"
    )


def has_tokenizer(folder: Path) -> bool:
    """Tells whether a model folder has a tokenizer."""
    return (folder / TOKENIZER_FILE).is_file()


def _describe(tokenizer: Tokenizer, id: int | None) -> str:
    if id is None:
        return "its text, and no token before it"
    return f"token {id} ({tokenizer.token_bytes([id], skip_special=False).decode()!r})"
