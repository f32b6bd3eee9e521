"""Gives a written checkpoint its place in a run's `checkpoints` folder, and deletes old ones."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from minimind.engine.checkpoint import (
    META_FILE,
    UNFINISHED,
    Checkpoint,
    list_steps,
    load_checkpoint_meta,
    step_of,
)
from minimind.errors import CheckpointError
from minimind.lora.folder import BEST, LATEST
from minimind.runtime.digests import DIGESTS, digest_files
from minimind.runtime.whole_files import flush_to_disk

logger = logging.getLogger(__name__)


def publish(unfinished: Path, final: Path, meta: dict[str, Any], *, is_best: bool) -> None:
    """Writes meta.json into the folder `unfinished`, whose other files are on disk, renames the
    folder to `final`, and points the link `latest` at it, and `best` too with `is_best`. Where it
    raises OSError, only `unfinished` has changed."""
    names = [str(file.relative_to(unfinished)) for file in list_files(unfinished)]
    meta = meta | {
        "files": {name: (unfinished / name).stat().st_size for name in names},
        DIGESTS: digest_files(unfinished, names),
    }
    path = unfinished / META_FILE
    path.write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    flush_to_disk(path)
    for folder in (*filter(Path.is_dir, unfinished.rglob("*")), unfinished):
        flush_to_disk(folder)
    # Made while a full disk can still do no harm; what follows only renames.
    links = [
        _fresh_link(final.with_name(name), final.name) for name in (LATEST, BEST)[: 1 + is_best]
    ]
    earlier = _set_aside(final)
    try:
        unfinished.rename(final)
    except OSError:
        for fresh, _ in links:
            fresh.unlink()
        if earlier:
            earlier.rename(final)
        raise
    flush_to_disk(final.parent)
    for fresh, link in links:
        if link.is_dir() and not link.is_symlink():
            _keep(link, "a folder where a link belongs, as some programs copy links")
        fresh.replace(link)
    flush_to_disk(final.parent)
    if earlier and earlier.name.startswith(UNFINISHED):
        remove(earlier)


def prune(folder: Path, keep: int, keep_every: int) -> None:
    """Deletes all checkpoints older than the newest `keep` undamaged ones, except those that the
    links name and those whose step is a multiple of `keep_every`."""
    links = (folder / LATEST, folder / BEST)
    linked = {os.readlink(link) for link in links if link.is_symlink()}
    ours = [step for step in list_steps(folder) if not _is_copy(step)]
    newest = [step for step in ours if _read(step)][-keep:]
    for step in ours:
        is_due = keep_every > 0 and step_of(step) % keep_every == 0
        if newest and step < newest[0] and step.name not in linked and not is_due:
            remove(step)


def list_files(folder: Path) -> list[Path]:
    """Lists all files below a folder."""
    return [file for file in sorted(folder.rglob("*")) if file.is_file()]


def _read(step: Path) -> Checkpoint | None:
    """Reads a checkpoint's description, without its digests; None for a damaged one."""
    try:
        return load_checkpoint_meta(step)
    except CheckpointError:
        return None


def _is_copy(step: Path) -> bool:
    """Tells whether a user has copied another step's checkpoint to this name."""
    found = _read(step)
    return found is not None and found.step != step_of(step)


def _set_aside(final: Path) -> Path | None:
    """Renames a folder that already has a checkpoint's name: the damaged checkpoint of the same
    step, from before the run was resumed, or a user's copy of another step, which stays."""
    if not final.exists():
        return None
    if _is_copy(final):
        return _keep(final, "a copy of another step")
    aside = final.with_name(f"{UNFINISHED}replaced-{final.name}")
    remove(aside)
    return final.rename(aside)


def _keep(folder: Path, what: str) -> Path:
    """Renames a user's folder that has the name of a checkpoint or a link, so that it stays."""
    kept = folder.with_name(f"{folder.name}-copy-{secrets.token_hex(4)}")
    logger.warning("%s: %s; it is now %s", folder, what, kept)
    return folder.rename(kept)


def _fresh_link(link: Path, target: str) -> tuple[Path, Path]:
    """Makes a new link in the folder of `link`, which is later renamed to `link`."""
    fresh = link.with_name(f".{link.name}.new")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    fresh.symlink_to(target)
    return fresh, link


def remove(folder: Path) -> None:
    """Removes a folder. The folder is renamed first, so that a killed process leaves none that
    looks like a checkpoint."""
    doomed = folder
    if not folder.name.startswith(UNFINISHED):
        doomed = folder.with_name(f"{UNFINISHED}removed-{folder.name}")
        with contextlib.suppress(OSError):
            folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
