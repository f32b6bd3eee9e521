"""Writes the report of a pipeline, report.md and report.html, from what its steps left on disk."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2

from minimind.engine.metric_plots import plot_columns
from minimind.engine.metrics import METRICS_FILE, read_metrics
from minimind.errors import ConfigError
from minimind.evaluation.tables import result_tables
from minimind.inference.load import TEXT_ALONE
from minimind.pipeline.convert_step import ConvertStep
from minimind.pipeline.evaluate_step import EvaluateStep
from minimind.pipeline.make import Made
from minimind.pipeline.plan import spell_seconds
from minimind.pipeline.recipe_file import Pipeline
from minimind.pipeline.step import Place
from minimind.pipeline.train_step import TrainStep
from minimind.runtime.printable import printable
from minimind.runtime.text_table import format_table
from minimind.runtime.versions import versions
from minimind.runtime.whole_files import write_whole
from minimind.stages import STAGES

REPORT_FILES = ("report.md", "report.html")
_TEMPLATES = Path(__file__).parent
_MEASURES = ("learning_rate", "grad_norm", "tokens_per_s", "peak_bytes")
"""The columns of metrics.csv that the report draws besides the losses."""
_PICTURES = {
    "loss.png": "Training and validation loss over steps",
    "metrics.png": "The stage's own measures over steps",
    "expert_load.png": "The share of tokens that each expert gets",
    "adapter.png": "How much the adapter changes each linear",
}
"""The pictures that a run may leave, with their descriptions."""
_GIB = 2**30


def write_report(pipeline: Pipeline, place: Place, made: Sequence[Made]) -> list[Path]:
    """Writes the report into the pipeline's folder; gives the paths of its files. Raises
    ConfigError where they cannot be written."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=lambda name: bool(name and name.endswith(".html.jinja")),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"table": format_table, "fence": _fence, "embed": _embed}
    values = _collect(pipeline, place, made)
    paths = [place.folder / name for name in REPORT_FILES]
    try:
        for path in paths:
            text = environment.get_template(f"{path.name}.jinja").render(values)
            with write_whole(path) as new:
                new.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be written: {error.strerror}") from None
    return paths


def _collect(pipeline: Pipeline, place: Place, made: Sequence[Made]) -> dict[str, Any]:
    """Gives what the templates show."""
    trained = [one for one in made if isinstance(one.step, TrainStep)]
    evaluated = [one for one in made if isinstance(one.step, EvaluateStep)]
    seconds = sum(one.record.seconds for one in made)
    last = trained[-1].step.name if trained else ""
    return {
        "name": pipeline.name,
        "description": pipeline.description,
        "device": str(place),
        "versions": ", ".join(f"{name} {text}" for name, text in versions().items()),
        "cost": [_cost_row(one) for one in made],
        "total": spell_seconds(seconds),
        "tokens": sum(_num_tokens(one) for one in trained),
        "trained": [_show_training(one, place.folder) for one in trained],
        "samples": [sample for one in evaluated for sample in _samples(one)],
        "text_models": sorted({name for one in evaluated for name in _text_models(one)}),
        "text_alone": TEXT_ALONE,
        "tables": [table for one in evaluated for table in _tables(one)],
        "converted": [
            one.step.output(one.folder) for one in made if isinstance(one.step, ConvertStep)
        ],
        "last": place.folder / last if last else None,
    }


def _cost_row(one: Made) -> dict[str, str]:
    row = {"step": one.step.name, "does": one.step.title}
    row["time"] = spell_seconds(one.record.seconds)
    names = ("steps", "tokens", "tokens/s", "validation", "memory predicted", "memory used")
    row |= dict.fromkeys(names, "")
    if isinstance(one.step, TrainStep):
        rows = read_metrics(one.folder / METRICS_FILE)
        speeds = [float(row["tokens_per_s"]) for row in rows if row["tokens_per_s"]]
        row["steps"] = rows[-1]["step"] if rows else "none"
        row["tokens"] = f"{_num_tokens(one):,}"
        row["tokens/s"] = f"{sorted(speeds)[len(speeds) // 2]:,.0f}" if speeds else ""
        row["validation"] = _describe_validation(one.step.stage, rows)
        predicted = one.record.predicted.get("peak_bytes")
        row["memory predicted"] = f"{predicted / _GIB:.2f} GiB" if predicted else "no estimate"
        used = max((int(row["peak_bytes"]) for row in rows if row["peak_bytes"]), default=0)
        row["memory used"] = f"{used / _GIB:.2f} GiB" if used else "not measured"
    return row


def _num_tokens(one: Made) -> int:
    """Gives the tokens that a run has read, which its metrics count from its beginning on."""
    rows = read_metrics(one.folder / METRICS_FILE)
    return max((int(row["tokens"]) for row in rows if row["tokens"]), default=0)


def _describe_validation(stage: str, rows: Sequence[dict[str, str]]) -> str:
    """Writes the first and the best validation, such as "validation loss 4.1 -> 2.3"."""
    found = [float(row["val_loss"]) for row in rows if row["val_loss"]]
    if not found:
        return "never"
    kind = STAGES[stage]
    describe = kind(kind.recipe_type()).describe_validation
    first, best = describe(found[0]), describe(min(found))
    said = first.removeprefix("validation ")
    return said if len(found) == 1 else f"{said} -> {best.rpartition(' ')[2]}"


def _show_training(one: Made, folder: Path) -> dict[str, Any]:
    rows = read_metrics(one.folder / METRICS_FILE)
    plot_columns(rows, _MEASURES, folder / "report" / f"{one.step.name}.png")
    drawn = {folder / "report" / f"{one.step.name}.png": "Rate, gradient norm, speed and memory"}
    pictures = {one.folder / name: text for name, text in _PICTURES.items()} | drawn
    return {
        "name": one.step.name,
        "title": one.step.title,
        "command": shlex.join(one.record.command),
        "attempts": len(one.record.attempts),
        "folder": one.folder,
        "pictures": [
            {"path": path, "relative": path.relative_to(folder), "text": text}
            for path, text in pictures.items()
            if path.is_file()
        ],
    }


def _samples(one: Made) -> Iterator[dict[str, Any]]:
    """Yields each prompt of an evaluation with the answer of each model."""
    assert isinstance(one.step, EvaluateStep)
    results = one.step.read_results(one.folder)
    answers = {name: found["answers"] for name, found in results.items() if "answers" in found}
    for rows in zip(*answers.values(), strict=True):
        yield {
            "prompt": printable(rows[0]["prompt"]),
            "answers": [
                {"step": name, "text": _tidy(row["answer"]) or "(nothing)"}
                for name, row in zip(answers, rows, strict=True)
            ],
        }


def _text_models(one: Made) -> Iterator[str]:
    """Yields the name of each model that was asked as a user asks and has never learnt to chat."""
    assert isinstance(one.step, EvaluateStep)
    for name, found in one.step.read_results(one.folder).items():
        if "answers" in found and "notice" in found:
            yield name


def _tidy(answer: str) -> str:
    """Gives an answer without blank lines, of which untrained models write many."""
    lines = printable(answer).split("\n")
    return "\n".join(line for line in lines if line.strip()).strip()


def _tables(one: Made) -> Iterator[dict[str, Any]]:
    assert isinstance(one.step, EvaluateStep)
    for name, rows in result_tables(one.step.read_results(one.folder)).items():
        yield {"name": f"{one.step.name}: {name}", "rows": rows}


def _fence(text: str) -> str:
    """Writes a text as a Markdown block, which no text inside it can end."""
    longest = max((len(run) for run in text.split("\n") if set(run.strip()) == {"`"}), default=2)
    mark = "`" * max(3, longest + 1)
    return f"{mark}text\n{text}\n{mark}"


def _embed(path: Path) -> str:
    """Gives a picture as a data URI, for a page that needs no other file."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
