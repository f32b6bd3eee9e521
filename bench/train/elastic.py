"""Shows that a run goes on under other ZeRO stages and numbers of ranks as if nothing had happened:
`python -m bench.train.elastic [docs/figures/elastic.png]`.

Trains a small model on a CPU in fp32 three times over two epochs: left alone; interrupted twice and
resumed under another ZeRO stage; interrupted twice and resumed on another number of ranks. Plots
the losses over one another with their differences, and checks by the documents' recorded names that
each is read once an epoch, in the same step.

Exit status: 0 done, 1 a run broke, its losses differ by more than 1e-6 of themselves, or it read
other documents.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from minimind.pictures.axes import count_axis, legend_above
from minimind.pictures.style import GREY, line_styles, picture

_DOCUMENTS, _EPOCHS, _ROWS_A_STEP = 240, 2, 4
_STEPS = _EPOCHS * _DOCUMENTS // _ROWS_A_STEP
_TOLERANCE = 1e-6
_WHOLE = "left alone"
_RUNS: dict[str, list[tuple[str, int]]] = {
    _WHOLE: [("zero2", 1)],
    "zero2 → zero3 → zero1": [("zero2", 1), ("zero3", 1), ("zero1", 1)],
    "1 → 2 → 1 ranks": [("zero2", 1), ("zero2", 2), ("zero2", 1)],
}
"""The legs of each run: DeepSpeed JSON and number of ranks."""
_FLAGS = (
    *("--seq_len", "64", "--max_steps", str(_STEPS), "--eval_every", "0", "--save_every", "0"),
    *("--batch_size", str(_ROWS_A_STEP), "--set", "micro_batch_size=2", "--set", "log_every=40"),
    *("--set", "hidden_size=64", "--set", "num_hidden_layers=2"),
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path("docs/figures/elastic.png")
    parser.add_argument(
        "figure", nargs="?", type=Path, default=default, help=f"(default: {default})"
    )
    target = parser.parse_args(argv).figure
    losses: dict[str, list[float]] = {}
    read: dict[str, dict[int, list[str]]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-elastic-") as folder:
        data = Path(folder) / "data.jsonl"
        _write_data(data)
        for number, (name, legs) in enumerate(_RUNS.items()):
            run = Path(folder) / str(number)
            read[name] = _train(run, data, legs)
            losses[name] = _read_losses(run)
    _plot(losses, target)
    print(f"written: {target}")
    return _check(losses, read)


def _write_data(path: Path) -> None:
    """Writes documents of which a row holds one each, so that an epoch is a number of steps."""
    with open(path, "w", encoding="utf-8") as file:
        for number in range(_DOCUMENTS):
            words = [f"{number + k} + {k} = {number + 2 * k}." for k in range(1, 7)]
            file.write(json.dumps({"text": " ".join(words)}) + "\n")


def _train(run: Path, data: Path, legs: Sequence[tuple[str, int]]) -> dict[int, list[str]]:
    """Runs the legs one after another; gives the documents read in each step. Raises
    CalledProcessError where one breaks."""
    record = run.with_suffix(".read")
    for leg, (json_name, ranks) in enumerate(legs):
        last = leg + 1 == len(legs)
        stop = 0 if last else _STEPS * (leg + 1) // len(legs)
        program = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        program += ["--nproc_per_node", str(ranks), "-m", "bench.train.elastic_rank"]
        program += [str(record), str(stop), *_FLAGS, "--ds_config", f"{json_name}.json"]
        program += ["--data", str(data), "--output_dir", str(run), *(["--resume"] * (leg > 0))]
        environment = {"MINIMIND_PRECISION": "fp32", "DS_ACCELERATOR": "cpu"}
        # An interrupted leg ends with a status that torchrun calls a failure.
        subprocess.run(program, check=last, env=os.environ | environment)
    found: dict[int, list[str]] = {}
    for line in record.read_text(encoding="utf-8").splitlines():
        step = json.loads(line)
        found.setdefault(step["step"], []).extend(step["documents"])
    return found


def _read_losses(run: Path) -> list[float]:
    with open(run / "metrics.csv", encoding="utf-8") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def _check(losses: dict[str, list[float]], read: dict[str, dict[int, list[str]]]) -> int:
    whole, problems = losses[_WHOLE], 0
    for name in _RUNS:
        pairs = zip(losses[name], whole, strict=True)
        worst = max(abs(one - other) / other for one, other in pairs)
        times = Counter(document for step in read[name].values() for document in step)
        same = all(sorted(read[name][s]) == sorted(read[_WHOLE][s]) for s in read[_WHOLE])
        once = len(times) == _DOCUMENTS and set(times.values()) == {_EPOCHS}
        print(
            f"{name}: {len(losses[name])} steps, losses within {worst:.1e} of themselves; "
            f"{len(times)} documents, {'each once an epoch' if once else times.most_common(3)}, "
            f"{'in the same steps' if same else 'in OTHER steps'}"
        )
        problems += worst > _TOLERANCE or not once or not same
    return 1 if problems else 0


def _plot(losses: dict[str, list[float]], target: Path) -> None:
    steps, whole = range(1, _STEPS + 1), losses[_WHOLE]
    styles = line_styles(losses)
    with picture(target, 8, 6) as figure:
        above, below = figure.subplots(2, 1, sharex=True)
        for width, (name, values) in zip((7, 4, 1.5), losses.items(), strict=True):
            look = {**styles[name], "marker": ""}
            # The first lines are wide and solid, so that those on top of them can be seen.
            solid = {"linestyle": "-"} if width > 1.5 else {}
            above.plot(steps, values, label=name, **{**look, **solid}, linewidth=width)
            if name != _WHOLE:
                gaps = [abs(one - other) / other for one, other in zip(values, whole, strict=True)]
                below.plot(steps, gaps, **look)
        for leg in (1, 2):
            for axes in (above, below):
                axes.axvline(_STEPS * leg / 3, color=GREY, linestyle=":", linewidth=1)
        above.set(
            ylabel="loss", title="Interrupted and resumed at the dotted lines (fp32, one CPU)"
        )
        below.set(ylabel=f"relative difference\nfrom the run {_WHOLE}", ylim=(0, 2 * _TOLERANCE))
        count_axis(below)
        legend_above(figure, above)


if __name__ == "__main__":
    sys.exit(main())
