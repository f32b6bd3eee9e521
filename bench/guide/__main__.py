"""Writes the code, the outputs and the pictures of the guide in docs/guide anew:
`python -m bench.guide`.

Code comes from the source by name, and every example is run, once for both languages; its output is
written only where it differs from the page's by more than rounding. With names, only those examples
are run, and only their pictures are drawn; `none` runs no example, and draws the pictures that need
none. Tests check that pages and code agree.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from bench.guide import pictures
from bench.guide.examples import all_examples, prints_the_same, run_example
from bench.guide.pages import fill_page, pages, printed_in
from bench.guide.sources import MissingSourceError
from bench.harness import ROOT

# Compiling the CPU code of the kernels would take longer than the examples.
os.environ.setdefault("MINIMIND_COMPILE", "0")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.guide",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = all_examples()
    parser.add_argument("examples", nargs="*", metavar="NAME", help=f"{', '.join(known)} or all")
    options = parser.parse_args(argv)
    wanted = [name for name in options.examples or known if name != "none"]
    if unknown := [name for name in wanted if name not in known]:
        parser.error(f"{unknown[0]}: the examples are none, {', '.join(known)}")
    texts = {page: page.read_text(encoding="utf-8") for page in pages()}
    for page, text in texts.items():
        try:
            fill_page(text, {})  # checked before the examples run for minutes
        except (MissingSourceError, FileNotFoundError) as error:
            parser.error(f"{page.relative_to(ROOT)}: {error}")
    outputs = _run(wanted)
    written = []
    for page, before in texts.items():
        said = printed_in(before)
        new = {
            name: printed
            for name, printed in outputs.items()
            if not prints_the_same(said.get(name, ""), printed)
        }
        after = fill_page(before, new)
        if after != before:
            page.write_text(after, encoding="utf-8")
            written.append(str(page.relative_to(ROOT)))
    if "none" in (options.examples or ["none"]):
        for draw in pictures.PICTURES.values():
            print(f"written: {draw().relative_to(ROOT)}")
    print(f"written: {', '.join(written) or 'no page, all are as code and examples give them'}")


def _run(names: Sequence[str]) -> dict[str, str]:
    """Runs the examples, draws their pictures, and gives what each prints."""
    outputs = {}
    for name in names:
        print(f"running {name}", flush=True)
        outputs[name], variables = run_example(name)
        if name in pictures.FROM_EXAMPLES:
            path = pictures.FROM_EXAMPLES[name](variables)
            print(f"written: {path.relative_to(ROOT)}")
    return outputs


if __name__ == "__main__":
    main()
