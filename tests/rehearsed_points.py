"""Chooses the runs (points) in the table tests/rehearsal/asked.json, and rehearses them.

`python tests/rehearsed_points.py` writes the table again: after a change that makes the device do
more on purpose, and to add rows for a new stage, JSON or preset.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from stage_options import REQUIRED_OPTIONS

from minimind.config.deepspeed_json import SHIPPED
from minimind.config.model import PRESETS, load_model_config
from minimind.model.state_dict import save_hf_folder
from minimind.model.transformer import Transformer
from minimind.rehearsal.rehearse import Point, rehearse_all
from minimind.rehearsal.report import Rehearsal
from minimind.run.arguments import collect_arguments
from minimind.samples.text import load_sample_tokenizer
from minimind.stages import STAGES

TABLE = Path(__file__).with_name("rehearsal") / "asked.json"
DEVICE = "H200"
LAYERS = 1
"""The layers of each model, since further layers only repeat the same work."""
JSONS = sorted(path.stem for path in SHIPPED.glob("*.json"))


class Chosen(NamedTuple):
    stage: str
    json: str
    model: str
    ranks: int

    @property
    def name(self) -> str:
        return " ".join(map(str, self))

    @property
    def waits_for_tokens(self) -> bool:
        """Tells whether the stage generates answers and reads them."""
        return not STAGES[self.stage].data_format.packed


EVERY = tuple(itertools.starmap(Chosen, itertools.product(STAGES, JSONS, PRESETS, (1, 2, 8))))


def choose() -> list[Chosen]:
    """Gives points such that any two values of different kinds occur together: those of the table,
    and more for values that it does not have."""
    named = {point.name: point for point in EVERY}
    chosen = [named[name] for name in read_table() if name in named]
    missing = {pair for point in EVERY for pair in _pairs(point)}
    missing -= {pair for point in chosen for pair in _pairs(point)}
    while missing:
        best = max(EVERY, key=lambda point: len(missing & set(_pairs(point))))
        missing -= set(_pairs(best))
        chosen.append(best)
    return chosen


def _pairs(point: Chosen) -> Iterator[tuple[tuple[int, str | int], ...]]:
    return itertools.combinations(enumerate(point), 2)


def rehearse_points(points: Sequence[Chosen], folder: Path) -> list[Rehearsal]:
    """Rehearses a step of each point; the models that stages start from go into `folder`."""
    for model in {point.model for point in points}:
        _save_model(model, folder / model)
    return rehearse_all([_as_point(point, folder / point.model) for point in points])


def _save_model(name: str, folder: Path) -> None:
    tokenizer = load_sample_tokenizer()
    config = load_model_config(
        name, {"num_hidden_layers": LAYERS}, tokenizer_vocab=tokenizer.vocab_size
    )
    weights = dict(Transformer(config).named_parameters())
    save_hf_folder(folder, config, weights, torch.float32)
    tokenizer.save(folder)


def _as_point(point: Chosen, folder: Path) -> Point:
    options: dict[str, object] = {
        "stage": point.stage,
        "ds_config": f"{point.json}.json",
        "seq_len": 256,
        "set": {"micro_batch_size": 4, "train_batch_size": 8 * point.ranks},
    }
    if STAGES[point.stage].needs_checkpoint:
        options["from_checkpoint"] = str(folder)
    else:
        options |= {"model": point.model, "num_hidden_layers": LAYERS}
    options |= REQUIRED_OPTIONS.get(point.stage, {})
    if "teacher" in options:
        options["teacher"] = str(folder)
    if point.waits_for_tokens:
        options["set"] = {"micro_batch_size": 2, "train_batch_size": 2 * point.ranks}
        options |= {
            "num_generations": 2,
            "num_minibatches": 2,
            "inner_epochs": 1,
            "max_new_tokens": 2,
        }
    return Point(arguments=collect_arguments(options), device=DEVICE, ranks=point.ranks)


def read_table() -> dict[str, dict[str, int]]:
    return json.loads(TABLE.read_text(encoding="utf-8"))


def as_rows(points: Iterable[Chosen], found: Iterable[Rehearsal]) -> dict[str, dict[str, int]]:
    """Gives the rows of the table."""
    return {
        point.name: {
            "launches": one.num_launches,
            "operators": one.num_operators,
            "waits": sum(wait.count for wait in one.forbidden_waits),
        }
        for point, one in zip(points, found, strict=True)
    }


def main() -> int:
    points = choose()
    with tempfile.TemporaryDirectory() as folder:
        rows = as_rows(points, rehearse_points(points, Path(folder)))
    lines = [f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()]
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
