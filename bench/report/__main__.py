"""Makes tables and plots from the results files, and tables from the code itself (formats of data,
fields of requests, packages, faults): `python -m bench.report`.

In a document, the text between `<!-- generated: python -m bench.report NAME -->` and `<!-- end -->`
is written again from bench/results; plots go to docs/figures. A value without a measurement reads
"not measured". With names, only those sections are written, and no plots. Tests check that they are
up to date.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from functools import partial

from bench.harness import ROOT
from bench.kernels.tables import kernel_table, step_count_table
from bench.learning.results import learning_section
from bench.report.faults import faults_section
from bench.report.formats import files_section, forms_section, keys_section
from bench.report.goals import (
    ceilings_section,
    kernel_goals_section,
    other_goals_section,
    profile_section,
    training_goals_section,
)
from bench.report.packages import packages_section
from bench.report.plots import draw_plots
from bench.report.readme import README_SECTIONS
from bench.report.request_fields import calls_section, parts_section
from bench.report.tables import (
    cards_section,
    data_section,
    memory_section,
    scaling_section,
    training_section,
)
from bench.results import Results

SECTIONS: dict[str, Callable[[Results], str]] = {
    "kernels": kernel_table,
    "step_counts": step_count_table,
    "training": training_section,
    "scaling": scaling_section,
    "cards": cards_section,
    "ceilings": ceilings_section,
    "kernel_goals": kernel_goals_section,
    "training_goals": training_goals_section,
    "other_goals": other_goals_section,
    "profiles": profile_section,
    "memory": memory_section,
    "data": data_section,
    "learning": learning_section,
    **README_SECTIONS,
}
RULES: dict[str, Callable[[], str]] = {
    "files": files_section,
    "forms": forms_section,
    "keys": keys_section,
    "packages": packages_section,
    "faults": faults_section,
    "request_calls": calls_section,
    "request_parts": parts_section,
}
"""The sections that hold no results."""
NAMES = (*SECTIONS, *RULES)
DOCUMENTS = (
    "README.md", "README_zh.md", "kernels/README.md", "docs/performance.md", "docs/data.md",
    "docs/architecture.md", "docs/faults.md", "docs/learning.md",
    "docs/request_fields.md",
)  # fmt: skip
_SECTION = re.compile(
    r"(?P<start><!-- generated: python -m bench\.report (?P<name>\w+) -->\n)"
    r"(?P<text>.*?)(?P<end><!-- end -->)",
    re.DOTALL,
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)} or all")
    options = parser.parse_args(argv)
    if unknown := [name for name in options.sections if name not in NAMES]:
        parser.error(f"{unknown[0]}: the sections are {', '.join(NAMES)}")
    results, written = Results.load(), []
    for name in DOCUMENTS:
        path = ROOT / name
        before = path.read_text(encoding="utf-8")
        after = fill_sections(before, results, options.sections or NAMES)
        if before != after:
            path.write_text(after, encoding="utf-8")
            written.append(name)
    for path in () if options.sections else draw_plots(results):
        print(f"written: {path.relative_to(ROOT)}")
    print(f"written: {', '.join(written) or 'no document, all are as the results have them'}")


def fill_sections(text: str, results: Results, names: Sequence[str]) -> str:
    """Gives the document with its sections of these names made anew. Raises KeyError for a mark
    whose name is no section."""

    def fill(found: re.Match[str]) -> str:
        name = found["name"]
        make = RULES[name] if name in RULES else partial(SECTIONS[name], results)
        return f"{found['start']}{make()}\n{found['end']}" if name in names else found[0]

    return _SECTION.sub(fill, text)


if __name__ == "__main__":
    main()
