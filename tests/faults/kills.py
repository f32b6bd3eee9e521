"""Kills training runs with signal 9 at random moments, resumes them, and checks that they end with
the weights of a run that was left alone.

    python tests/faults/kills.py --kills 100 --inside_saves 30 --on_two_ranks 30 --folder DIR

Runs are forked from this process, which has imported everything: an import takes longer than the
run. A kill ends all ranks at once, as a power cut does. It counts as inside a save if it left an
unfinished folder, or a checkpoint that `latest` does not name yet. After each kill no finished
checkpoint may be gone.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import deepspeed  # noqa: E402, F401  (each fork would import it)
from training_runs import assert_same_run  # noqa: E402

from minimind.cli import train  # noqa: E402
from minimind.engine.checkpoint import find_latest  # noqa: E402
from minimind.runtime.ranks import free_port  # noqa: E402

FLAGS = [
    *("--ds_config", "zero2.json", "--model", "tiny", "--seq_len", "64", "--max_steps", "24"),
    *("--eval_every", "6", "--save_every", "2", "--set", "train_batch_size=4"),
    *("--set", "micro_batch_size=2", "--set", "eval_rows=4", "--set", "dropout=0.1"),
    *("--set", "hidden_size=64", "--set", "num_hidden_layers=2"),
]
_LONGEST_RUN_S = 600
_POLL_S = 0.001


@dataclasses.dataclass
class Kills:
    """Counts kills by where they came."""

    total: int = 0
    inside_saves: int = 0
    on_two_ranks: int = 0
    before_the_first_checkpoint: int = 0
    runs: int = 0


class Ranks:
    """Runs training on a number of ranks, forked from this process."""

    def __init__(self, number: int, arguments: Sequence[str], log: Path) -> None:
        port = str(free_port())
        self.pids = [self._fork(rank, number, port, arguments, log) for rank in range(number)]
        self.statuses: dict[int, int] = {}

    def _fork(self, rank: int, number: int, port: str, arguments: Sequence[str], log: Path) -> int:
        if pid := os.fork():
            return pid
        status = 1
        try:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "MASTER_PORT": port}
            os.environ |= {name: str(value) for name, value in here.items()}
            os.environ |= {"LOCAL_WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1"}
            status = train.main(list(arguments))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def is_running(self) -> bool:
        for pid in self.pids:
            if pid not in self.statuses:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    self.statuses[pid] = os.waitstatus_to_exitcode(status)
        return len(self.statuses) < len(self.pids)

    def kill(self) -> None:
        for pid in self.pids:
            if pid not in self.statuses:
                os.kill(pid, signal.SIGKILL)
        while self.is_running():
            time.sleep(_POLL_S)


def run_to_end(ranks: int, folder: Path) -> float:
    """Trains without a kill; gives the seconds that it took. Raises AssertionError."""
    began = time.perf_counter()
    run = Ranks(ranks, [*FLAGS, "--output_dir", str(folder)], folder.with_suffix(".log"))
    while run.is_running():
        time.sleep(0.01)
    assert set(run.statuses.values()) == {0}, folder.with_suffix(".log").read_text()
    return time.perf_counter() - began


def kill_until_done(
    ranks: int, folder: Path, usual_s: float, kills: Kills, chance_of_save: float, most: int
) -> None:
    """Starts and resumes a run, with at most `most` kills, until it is done."""
    checkpoints = folder / "checkpoints"
    newest, log = 0, folder.with_suffix(".log")
    while True:
        resume = ["--resume"] if (folder / "run.json").exists() else []
        run = Ranks(ranks, [*FLAGS, *resume, "--output_dir", str(folder)], log)
        at_save = random.random() < chance_of_save
        until = time.perf_counter() + random.uniform(0, usual_s)
        nth_save, seen, is_killed = random.randint(1, 6), set[str](), False
        began = time.perf_counter()
        while run.is_running():
            time.sleep(_POLL_S)
            now = time.perf_counter()
            assert now - began < _LONGEST_RUN_S, f"{folder}: hangs"
            if kills.total >= most:
                continue
            if at_save:
                seen |= {path.name for path in checkpoints.glob(".unfinished-step-*")}
                if len(seen) >= nth_save:
                    time.sleep(random.uniform(0, 0.2))
                    is_killed = True
            elif now >= until:
                is_killed = True
            if is_killed:
                run.kill()
                break
        if not is_killed or set(run.statuses.values()) == {0}:  # done before the kill came
            assert set(run.statuses.values()) == {0}, log.read_text()[-3000:]
            return
        found = find_latest(checkpoints) if checkpoints.is_dir() else None
        step = found.step if found else 0
        assert step >= newest, f"{folder}: step {newest} was saved, but now {step} is the newest"
        newest = step
        kills.total += 1
        kills.on_two_ranks += ranks == 2
        kills.before_the_first_checkpoint += found is None
        latest = checkpoints / "latest"
        named = latest.readlink().name if latest.is_symlink() else ""
        is_unnamed = found is not None and found.folder.name != named
        kills.inside_saves += bool(list(checkpoints.glob(".unfinished-*"))) or is_unnamed


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--inside_saves", type=int, default=30, help="at least so many of them")
    parser.add_argument("--on_two_ranks", type=int, default=30, help="at least so many of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to train (default: a temporary folder)")
    given = parser.parse_args(argv)
    random.seed(given.seed)
    parent = given.folder or Path(tempfile.mkdtemp(prefix="kills-"))
    parent.mkdir(parents=True, exist_ok=True)
    kills, undisturbed = Kills(), dict[int, float]()
    while kills.total < given.kills or kills.inside_saves < given.inside_saves:
        ranks = 2 if kills.on_two_ranks < given.on_two_ranks else 1
        whole = parent / f"whole-{ranks}"
        if ranks not in undisturbed:
            undisturbed[ranks] = run_to_end(ranks, whole)
        run = parent / f"killed-{kills.runs}"
        chance = 0.6 if kills.inside_saves < given.inside_saves else 0.0
        most = max(given.kills, kills.total + 1)
        kill_until_done(ranks, run, undisturbed[ranks], kills, chance, most)
        compared = os.fork()
        if not compared:  # PyTorch's threads, once started, would not survive in the next fork
            status = 1
            try:
                assert_same_run(whole, run)
                status = 0
            except AssertionError:
                traceback.print_exc()
            finally:
                os._exit(status)
        assert os.waitpid(compared, 0)[1] == 0, f"{run} is not {whole}"
        left = {path.name for path in (run / "checkpoints").iterdir() if path.name[0] == "."}
        assert not left, f"{run}: {left}"
        shutil.rmtree(run)
        kills.runs += 1
        print(kills, flush=True)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
