"""Feeds changed files and requests to everything that reads what others made:

    python tests/faults/fuzz.py --minutes 10

hypothesis changes what is right, and schemathesis makes calls of the server's description: each
target gets an equal share of the time, in a process of its own. Where atheris is installed, it has
a quarter of the time to look for inputs of all targets that reach other lines of code. A case fails
by an exception that is no MiniMindError, by an answer of 500 or by taking longer than LIMIT_S.
Failing cases are written into a folder; the exit status is their number, at most 99.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "MINIMIND_COMPILE": "0"}
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")]

from fuzz_targets import LIMIT_S, TARGETS, Target  # noqa: E402
from generated_cases import GENERATED  # noqa: E402
from hypothesis import given, seed, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.strategies import SearchStrategy  # noqa: E402

_BATCH = 50
"""The cases of one run of hypothesis."""
_SHARE_OF_ATHERIS = 0.25
_IMPORTS = (
    *("minimind.run.run", "minimind.inference.load", "minimind.interop.conversion"),
    *("original_models", "small_adapters", "live_servers", "schemathesis"),
)
"""What takes long to import, and is imported once."""
_SERVED = ("requests", "described_calls")
"""Targets that are fed over HTTP; their reading is in another thread, where atheris sees
nothing."""


class Cases:
    """Counts the cases of a target, and writes each kind of failure once."""

    def __init__(self, target: Target, name: str, failures: Path, ends: float) -> None:
        self._target, self._name, self._failures, self._ends = target, name, failures, ends
        self.number = self.refused = 0

    @property
    def is_over(self) -> bool:
        return time.time() >= self._ends

    def feed(self, case: Any) -> None:
        from minimind.errors import MiniMindError

        if self.is_over:
            return
        self.number += 1
        signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
        try:
            self._target.feed(case)
        except MiniMindError:
            self.refused += 1
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a panic in Rust is no Exception
            self._write(case, error)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _write(self, case: Any, error: BaseException) -> None:
        last = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{Path(last.filename).stem}-{last.lineno}"
        file = self._failures / f"{self._name}-{type(error).__name__}-{at}.txt"
        if not file.exists():
            file.write_text(f"{case!r}\n\n{traceback.format_exc()}", errors="backslashreplace")


def test_of(inputs: SearchStrategy[Any], feed: Callable[[Any], None]) -> Callable[[], None]:
    """Gives hypothesis's test of inputs."""

    @settings(GENERATED, max_examples=_BATCH)
    @given(case=inputs)
    def test(case: Any) -> None:
        feed(case)

    return test


def start_alarm() -> None:
    def too_slow(*_: object) -> None:
        raise TimeoutError(f"a case takes longer than {LIMIT_S:g} s")

    signal.signal(signal.SIGALRM, too_slow)


def feed_one(name: str, run: Path, ends: float, failures: Path) -> None:
    """Feeds one target until the time is over, and ends the process."""
    own = Path(shutil.copytree(run, run.with_name(f"for-{name}"), symlinks=True))
    start_alarm()
    with contextlib.ExitStack() as stack:
        target = TARGETS[name](own, stack)
        cases = Cases(target, name, failures, ends)
        test, batch = test_of(target.inputs, cases.feed), 0
        while not cases.is_over:
            seed(batch)(test)()
            batch += 1
        print(f"{name} (hypothesis): {cases.number} cases, {cases.refused} refused", flush=True)
    os._exit(0)


def feed_by_coverage(names: Sequence[str], run: Path, ends: float, failures: Path) -> None:
    """Lets atheris choose the bytes from which hypothesis makes inputs for all targets, and ends
    the process."""
    import atheris

    stack = contextlib.ExitStack()
    of_each: dict[str, Cases] = {}
    inputs: list[SearchStrategy[Any]] = []
    with atheris.instrument_imports(include=["minimind"]):
        for name in names:
            own = Path(shutil.copytree(run, run.with_name(f"atheris-{name}"), symlinks=True))
            target = TARGETS[name](own, stack)
            of_each[name] = Cases(target, name, failures, ends)
            inputs.append(st.tuples(st.just(name), target.inputs))
    test: Any = test_of(st.one_of(inputs), lambda case: of_each[case[0]].feed(case[1]))

    def feed(content: bytes) -> None:
        if not of_each[names[0]].is_over:
            start_alarm()  # libFuzzer has taken it
            test.hypothesis.fuzz_one_input(content)
            return
        for name, cases in of_each.items():
            print(f"{name} (atheris): {cases.number} cases, {cases.refused} refused", flush=True)
        os._exit(0)  # there is no other way out

    quietly = ["-verbosity=0", "-timeout=0", "-rss_limit_mb=0"]
    atheris.Setup([sys.argv[0], *quietly, "-len_control=0", "-max_len=4096"], feed)
    atheris.Fuzz()


def in_a_fork(work: Callable[[], object], until: float) -> str:
    """Does a work in a process that has all imports already. Says how it failed; "" where it did
    not."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    while time.time() < until + 2 * LIMIT_S:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return f"ended with {code}" if code else ""
        time.sleep(0.2)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hangs"


def train_a_run(folder: Path) -> None:
    """Trains two steps of a small model, whose files the targets read."""
    from minimind.cli import train

    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(20)))
    flags = {"ds_config": "zero2.json", "model": "tiny", "data": data, "output_dir": folder / "run"}
    flags |= {"max_steps": 2, "seq_len": 64, "eval_every": 0, "batch_size": 2}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    status = train.main([*words, "--set", "hidden_size=32", "--set", "num_hidden_layers=2"])
    assert status == 0, "the run that the targets read could not be trained"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--failures", type=Path, default=Path("runs/fuzz"))
    options = parser.parse_args()
    began, failures = time.time(), options.failures
    shutil.rmtree(failures, ignore_errors=True)
    failures.mkdir(parents=True)
    with_files = [name for name in options.targets if name not in _SERVED]
    has_atheris = bool(with_files) and importlib.util.find_spec("atheris") is not None
    with tempfile.TemporaryDirectory() as place:
        os.environ["MINIMIND_CACHE"] = str(Path(place) / "cache")
        run = Path(place) / "run"
        problems = {"run": in_a_fork(lambda: train_a_run(Path(place)), began + 300)}
        if has_atheris:  # before this process imports what it is to see
            until = time.time() + 60 * options.minutes * _SHARE_OF_ATHERIS
            feeding = partial(feed_by_coverage, with_files, run, until, failures)
            problems["atheris"] = in_a_fork(feeding, until)
        for module in _IMPORTS:
            importlib.import_module(module)
        ends = began + 60 * options.minutes
        for number, name in enumerate(options.targets):
            now = time.time()
            until = now + (ends - now) / (len(options.targets) - number)
            problems[name] = in_a_fork(partial(feed_one, name, run, until, failures), until)
    for name, problem in problems.items():
        if problem:
            (failures / f"{name}-process.txt").write_text(problem)
    found = sorted(failures.iterdir())
    for file in found:
        print(f"{file}: {file.read_text().strip().splitlines()[-1]}")
    return min(len(found), 99)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    sys.exit(main())
