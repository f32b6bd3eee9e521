"""A training run: resolved, built, stepped and recorded here and nowhere else."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from minimind.data.loader import EvalLoader, PackedLoader
from minimind.data.tokenizer import Tokenizer
from minimind.engine.checkpoint import Checkpoint, find_latest
from minimind.engine.deepspeed_engine import broadcast, start_ranks
from minimind.engine.loop import Loop
from minimind.engine.stage import Loader
from minimind.run.build import (
    Recorder,
    Trained,
    build_engine,
    build_loop,
    build_trained,
    main_first,
)
from minimind.run.describe import describe_run
from minimind.run.flags import TrainArguments, collect_train_arguments, parse_train_arguments
from minimind.run.folder import make_folder, merge_earlier
from minimind.run.inputs import build_loaders
from minimind.run.resolve import ResolvedRun, check_same_run, find_tokenizer, resolve_run
from minimind.runtime.devices import Device, check_kernels, find_device, limit_threads
from minimind.runtime.ranks import Ranks, read_ranks
from minimind.runtime.seeds import make_deterministic
from minimind.stages import STAGES
from minimind.types import StepStats

logger = logging.getLogger("minimind")


class Run:
    """One training run, from what the user gave to its checkpoints.

    >>> run = Run.resolve(stage="sft", from_checkpoint="runs/base", data="chat.jsonl")
    >>> print(run.describe())
    >>> run.train()

    What measures a run takes its steps one by one instead: `run.build()`, then `run.step()`.
    """

    def __init__(self, resolved: ResolvedRun, tokenizer: Tokenizer, ranks: Ranks) -> None:
        self.resolved = resolved
        self.tokenizer = tokenizer
        self.ranks = ranks
        self.folder: Path | None = None
        """Where `train` writes; None before."""
        self._loaders: tuple[PackedLoader, EvalLoader | None] | None = None
        self._is_started = False
        self._trained: Trained | None = None
        self._loop: Loop[Any, Any] | None = None
        self._steps: Iterator[list[Any]] | None = None
        self._start: Checkpoint | None = None

    @classmethod
    def resolve(cls, argv: Sequence[str] | None = None, **options: Any) -> Run:
        """Resolves the flags of launch/train.py, or the same as keyword arguments: `set` is a
        mapping of what --set takes. Nothing is built and nothing written. Raises a MiniMindError
        for what cannot run; exits with status 2 on bad usage of flags."""
        return cls.of(parse_arguments(argv) if argv is not None else collect_arguments(options))

    @classmethod
    def of(cls, arguments: TrainArguments) -> Run:
        """Resolves arguments that were read already, on the device and rank of this process."""
        ranks = read_ranks(arguments.local_rank)
        device = find_device(ranks.local_rank)
        check_kernels(device)
        if arguments.resume:
            arguments = merge_earlier(arguments)
        return cls.on(arguments, ranks, device)

    @classmethod
    def on(cls, arguments: TrainArguments, ranks: Ranks, device: Device) -> Run:
        """Resolves arguments for a device and ranks that need not be here."""
        tokenizer = find_tokenizer(arguments)
        return cls(resolve_run(arguments, tokenizer, ranks, device), tokenizer, ranks)

    @property
    def loop(self) -> Loop[Any, Any]:
        """THE loop, once it is built."""
        assert self._loop is not None, "build() comes first"
        return self._loop

    @property
    def loader(self) -> PackedLoader:
        """The training data, tokenised and packed when first asked for."""
        return self._load()[0]

    @property
    def total_steps(self) -> int:
        return self.resolved.total_steps(self.loader)

    def describe(self) -> str:
        """What will run: model, device, step, data, rate and memory, a line each."""
        return describe_run(self.resolved, self.loader)

    def build(self, loader: Loader[Any] | None = None) -> Run:
        """Joins the ranks, reads the data and builds models, engine and loop; with --resume in the
        state of the newest checkpoint. `loader`: read instead of the run's own data, for at most
        as many steps. All ranks call it."""
        if self._loop is None:
            self._start_ranks()
            own, eval_data = self._load() if loader is None else (loader, None)
            total_steps = self.total_steps if loader is None else self._max_steps()
            if self.resolved.arguments.resume:
                output = Path(self.resolved.arguments.get("output_dir"))
                self._start = find_latest(output / "checkpoints")
            if self._start:
                check_same_run(self._start, self.resolved, own.fingerprint)
            self._trained = build_trained(
                self.resolved, self.tokenizer, own, eval_data, self._start
            )
            engine = build_engine(self.resolved, self.ranks, self._trained, self._start)
            self._loop = build_loop(
                self.resolved,
                self._trained.stage,
                engine,
                own,
                eval_data,
                total_steps=total_steps,
                start=self._start,
            )
        return self

    def step(self, wait: bool = True) -> StepStats | None:
        """Takes the next optimizer step as `train` takes it, without validation, samples and
        checkpoints. Gives what it did; with `wait` False what is known so far, which on a GPU is a
        step behind. Raises StopIteration after the last step."""
        loop = self.loop
        if self._steps is None:
            self._steps = loop.read()
            loop.start()
        loop.step(next(self._steps))
        loop.read_back()
        if wait:
            loop.wait()
        return loop.newest

    def train(self) -> bool:
        """Trains to the end and records it in the run's folder. True when done, False when
        interrupted, with a checkpoint saved. All ranks call it."""
        self._start_ranks()
        self._load()
        folder = broadcast(main_first(self.ranks, lambda: make_folder(self.resolved)))
        self.folder = folder
        logger.info("%s", self.describe())
        finished = self._train(folder)
        broadcast(None)  # no rank leaves before the first has written all
        return finished

    def _train(self, folder: Path) -> bool:
        loop = self.build().loop
        assert self._trained is not None
        if self._start:
            logger.info("resumed    from step %d of %s", loop.state.step, self._start.folder)
        if self._start and loop.state.step >= loop.total_steps:
            logger.info("all %d steps are done already: %s", loop.total_steps, self._start.folder)
            return True
        recorder = Recorder(self.resolved, self.tokenizer, self._trained, loop, folder)
        loop.events = recorder.events
        try:
            finished = loop.run()
        finally:
            recorder.close()
        finish = self._trained.models.finish
        if finished and finish and self.ranks.is_main:
            finish(folder)
        where = folder / "checkpoints" / "latest"
        logger.info("%s: %s", "done" if finished else "interrupted", where)
        return finished

    def _start_ranks(self) -> None:
        if not self._is_started:
            limit_threads(self.ranks.local_world_size)
            if self.resolved.recipe.deterministic:
                make_deterministic()
            start_ranks(self.ranks, self.resolved.device)
            self._is_started = True

    def _load(self) -> tuple[PackedLoader, EvalLoader | None]:
        if self._loaders is None:

            def load() -> tuple[PackedLoader, EvalLoader | None]:
                return build_loaders(self.resolved, self.tokenizer, self.ranks)

            # Rank 0 fills the token caches, which the others then map.
            first = main_first(self.ranks, load) if self._is_started else None
            self._loaders = first or load()
        return self._loaders

    def _max_steps(self) -> int:
        steps = self.resolved.recipe.max_steps
        assert steps is not None, "data of another's own says nothing of epochs: give max_steps"
        return steps


def parse_arguments(argv: Sequence[str] | None) -> TrainArguments:
    """Reads the flags of launch/train.py; exits with status 2 on bad usage."""
    return parse_train_arguments(argv, _recipe_types())


def collect_arguments(options: dict[str, Any]) -> TrainArguments:
    """Reads the same from keyword arguments. Raises ConfigError."""
    return collect_train_arguments(options, _recipe_types())


def _recipe_types() -> dict[str, Any]:
    return {name: stage.recipe_type for name, stage in STAGES.items()}
