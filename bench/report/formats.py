"""Makes the tables of docs/data.md: which files, forms of rows and keys are read, and which are
refused. They are made from the same tables that reading uses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.harness import plain_table
from minimind.data.containers import (
    COMPRESSIONS,
    CONTAINERS,
    FOREIGN_BY_BYTES,
    FOREIGN_BY_NAME,
    PARQUET,
)
from minimind.data.row_keys import KeyTable
from minimind.data.rows import DIALECTS, users_of
from minimind.data.turn_keys import (
    CALLS,
    LEARNING,
    LEARNING_WORDS,
    PARTS,
    ROLES,
    SHAREGPT_TURNS,
    TURNS,
)


def files_section() -> str:
    """Makes a line for each kind of file."""
    names = ", ".join(COMPRESSIONS)
    rows = []
    for one in CONTAINERS:
        more = "; `pip install 'minimind[parquet]'`" if one == PARQUET else f"; also under {names}"
        chosen = (
            f"read; `--format {one.name}`" if one.name in ("document", "paragraphs") else "read"
        )
        rows.append((one.what, f"{chosen}{more}"))
    rows += [
        (
            "a folder, or a pattern such as `'data/train-*'`",
            "read as one source, by name; several splits in one folder are refused",
        ),
        (
            "UTF-16, UTF-32, GBK, Big5, Shift-JIS, EUC, Windows-1252, other text than UTF-8",
            "refused: `iconv …`",
        ),
        (
            "objects over several lines, a list or a string on each line, an array of those",
            "refused: `jq -c …`",
        ),
        ("a tar archive", "refused: `tar -xf …`"),
    ]
    rows += [(f"`*{suffix}` ({what})", "refused") for suffix, what in FOREIGN_BY_NAME.items()]
    refused = {what: todo for _, what, todo in FOREIGN_BY_BYTES}
    rows += [(f"a file that {what}", f"refused: {todo}") for what, todo in refused.items()]
    return plain_table(("file", "read, or refused with"), rows)


def forms_section() -> str:
    """Makes a line for each form of row that a kind of training takes."""
    rows = [
        (users_of([kind]), f"`{dialect.name}`", dialect.title, f"`{dialect.example}`",
         dialect.targets or "as in the project's own form")
        for kind, dialects in DIALECTS.items()
        for dialect in dialects
    ]  # fmt: skip
    header = ("rows for", "`--format`", "form", "a row looks like", "targets")
    return plain_table(header, rows)


def keys_section() -> str:
    """Makes a line for each effect of keys, grouped by the kind of object that has them."""
    rows: list[tuple[str, str, str]] = []
    for kind, dialects in DIALECTS.items():
        rows += _key_rows(f"a row for {users_of([kind])}", [dialect.keys for dialect in dialects])
        hands_on = all(dialect.keys.hands_on for dialect in dialects)
        others = "handed to the rewards with the row" if hands_on else "reported, with a count"
        rows.append((f"a row for {users_of([kind])}", "any other", others))
    for what, tables in (
        ("a turn", [TURNS, SHAREGPT_TURNS]),
        ("a tool call", [CALLS]),
        ("a part of the content", [PARTS]),
    ):
        rows += [*_key_rows(what, tables), (what, "any other", "reported, with a count")]
    rows += [("a role", names, role) for role, names in _group(ROLES.items())]
    return plain_table(("of", "key", "used, or refused with"), rows)


def _key_rows(of: str, tables: Sequence[KeyTable]) -> list[tuple[str, str, str]]:
    """Makes a line for each effect that keys have in some of these forms, with all keys that have
    it."""
    used = _group(item for table in tables for item in table.used.items())
    refused = _group(
        (key, f"refused: {refusal.why}")
        for table in tables
        for key, refusal in table.refused.items()
        if not any(key in other.used for other in tables)
    )
    rows = [(of, keys, what) for what, keys in (*used, *refused)]
    if TURNS in tables:
        words = ", ".join(LEARNING_WORDS)
        why = f"refused where it holds numbers or switches: {LEARNING.why}"
        rows.append((of, f"any other with one of the words {words}", why))
    return rows


def _group(effects: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Gives each effect of (key, effect) pairs once, with all its keys."""
    keys: dict[str, dict[str, None]] = {}
    for key, effect in effects:
        keys.setdefault(effect, {})[f"`{key}`"] = None
    return [(effect, ", ".join(found)) for effect, found in keys.items()]
