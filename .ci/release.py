"""Checks that a tag may be released, and writes the notes of the release.

`python .ci/release.py v0.1.0 > notes.md`: the tag must be "v" and the version of
minimind/__init__.py, and CHANGELOG.md must have a section for this version, which becomes the
notes. Exit status: 0 it may be released, 1 it may not.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main(tag: str) -> int:
    version = read_version((ROOT / "minimind" / "__init__.py").read_text(encoding="utf-8"))
    if tag != f"v{version}":
        return _refuse(
            f"tag {tag}: minimind/__init__.py says version {version}; tag v{version}, or change "
            "__version__ first"
        )
    notes = read_notes((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), version)
    if not notes:
        return _refuse(
            f"CHANGELOG.md: no section '## {version}', or nothing in it; rename '## Unreleased'"
        )
    print(notes)
    return 0


def read_version(source: str) -> str:
    """Finds `__version__` in a module's source without running it."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return ast.literal_eval(node.value)
    raise ValueError("no __version__")


def read_notes(changelog: str, version: str) -> str:
    """Gives the text below the heading `## VERSION`, with or without a date behind it, up to the
    next heading of its level; "" where there is none."""
    heading = rf"^## {re.escape(version)}(?!\S).*$"
    found = re.search(heading + r"(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    return found.group(1).strip() if found else ""


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
