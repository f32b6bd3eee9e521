"""Defines a training run. It is resolved, built, stepped and recorded only here."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, cast

from minimind.data.loader import EvalLoader, PackedLoader
from minimind.data.tokenizer import Tokenizer
from minimind.engine.checkpoint import Checkpoint, find_latest, needs_conversion
from minimind.engine.deepspeed_engine import DeepSpeedEngine
from minimind.engine.loop import Loop
from minimind.engine.process_group import start_ranks
from minimind.engine.stage import Loader, StageModels
from minimind.errors import ConfigError
from minimind.model.flash_attention import use_newest_flash
from minimind.run.arguments import TrainArguments, collect_arguments, parse_arguments
from minimind.run.build import Trained, build_engine, build_loop, build_trained
from minimind.run.checks import check_data, check_run
from minimind.run.describe import describe_run
from minimind.run.folder import merge_earlier, open_together, resume_after_restart
from minimind.run.inputs import build_loaders
from minimind.run.resolve import ResolvedRun, check_same_run, find_tokenizer, resolve_run
from minimind.run.training import find_latest_together, train_recorded
from minimind.runtime.devices import Device, check_kernels, find_device, limit_threads
from minimind.runtime.heap import keep_freed_memory
from minimind.runtime.heartbeat import Heartbeat
from minimind.runtime.memory import unfreeze_objects
from minimind.runtime.ranks import Ranks, read_ranks
from minimind.runtime.seeds import make_deterministic
from minimind.runtime.together import all_do, broadcast, check_alike, main_first
from minimind.types import StepStats

logger = logging.getLogger("minimind")


class Run:
    """Is one training run, from the user's options to its checkpoints.

    >>> run = Run.resolve(stage="sft", from_checkpoint="runs/base", data="chat.jsonl")
    >>> print(run.describe())
    >>> run.train()

    A benchmark takes steps one by one instead, by `run.build()` and `run.step()`. A run can be
    either trained or stepped, once; `close` frees its memory.
    """

    def __init__(self, resolved: ResolvedRun, tokenizer: Tokenizer, ranks: Ranks) -> None:
        self.resolved = resolved
        self.tokenizer = tokenizer
        self.ranks = ranks
        self.folder: Path | None = None
        """The folder in which `train` writes; None before."""
        self._loaders: tuple[PackedLoader, EvalLoader | None] | None = None
        self._is_started = False
        self._has_own_data = True
        self._is_closed = False
        self._trained: Trained | None = None
        self._engine: DeepSpeedEngine | None = None
        self._loop: Loop[Any, Any] | None = None
        self._steps: Generator[list[Any], None, None] | None = None
        self._start: Checkpoint | None = None

    @classmethod
    def resolve(cls, argv: Sequence[str] | None = None, **options: Any) -> Run:
        """Resolves a run from a list of flags of `minimind train`, or from keyword arguments, where
        `set` is a mapping of what --set takes. Builds and writes nothing. Raises a MiniMindError
        for a run that cannot work; bad usage of flags exits with status 2."""
        if argv is None:
            return cls.of(collect_arguments(options))
        if isinstance(argv, str) or options:
            raise TypeError("Run.resolve takes a list of flags or keyword arguments, not both")
        return cls.of(parse_arguments(argv))

    @classmethod
    def of(cls, arguments: TrainArguments, place: tuple[Device, int] | None = None) -> Run:
        """Resolves a run from arguments that were read already, on this process's device and rank.
        `place` names another device and its number of ranks, which need not exist here."""
        ranks = read_ranks(arguments.local_rank)
        if place:
            device, ranks = place[0], Ranks(0, 0, place[1])
        else:
            device = find_device(ranks.local_rank)
            check_kernels(device)
        arguments = resume_after_restart(arguments)
        if arguments.resume:
            arguments = merge_earlier(arguments)
        return cls.on(arguments, ranks, device)

    @classmethod
    def on(cls, arguments: TrainArguments, ranks: Ranks, device: Device) -> Run:
        """Resolves a run for a device and ranks that need not exist here."""
        tokenizer = find_tokenizer(arguments)
        return cls(resolve_run(arguments, tokenizer, ranks, device), tokenizer, ranks)

    @property
    def loop(self) -> Loop[Any, Any]:
        """Gives the training loop. Raises RuntimeError before it is built."""
        if self._loop is None:
            raise RuntimeError("the run is not built yet: build() comes first")
        return self._loop

    @property
    def models(self) -> StageModels:
        """Gives the stage's models. Raises RuntimeError before they are built."""
        if self._trained is None:
            raise RuntimeError("the run is not built yet: build() comes first")
        return self._trained.models

    @property
    def loader(self) -> PackedLoader:
        """Gives the loader of the training data, which is tokenised and packed on first use."""
        return self._load()[0]

    @property
    def total_steps(self) -> int:
        """Gives the number of optimizer steps in the whole run."""
        return self.resolved.total_steps(self.loader)

    def describe(self) -> str:
        """Describes the run in a few lines: model, device, step, data, learning rate and so on."""
        loader, eval_data = self._load()
        return describe_run(self.resolved, self.tokenizer, loader, eval_data, self._find_start())

    def check(self) -> None:
        """Raises a MiniMindError for a run that `train` could not run, before anything is built.
        Dry runs and real runs make the same checks. All ranks call it."""
        start = self._find_start(together=self._is_started)
        check_alike(self.resolved.facts)
        all_do(lambda: check_run(self.resolved, self.tokenizer, start))
        loader, eval_data = self._load_together()
        run = self.resolved
        if start:
            check_same_run(start, run, loader.fingerprint)
            needs_conversion(start, run.world_size, run.zero_stage, run.ds_config)
        check_data(run, loader, eval_data)

    def build(self, loader: Loader[Any] | None = None) -> Run:
        """Joins the ranks, reads the data and builds models, engine and loop; with --resume in the
        state of the newest checkpoint. A `loader` replaces the run's own data; the run then has
        `max_steps` steps and can only be stepped. All ranks call it."""
        self._check_open()
        if self._loop is not None:
            return self
        self._start_ranks()
        if loader is None:
            own, eval_data = self._load_together()
            total_steps = self.resolved.total_steps(own)
        elif (total_steps := self.resolved.recipe.max_steps) is None:
            raise ConfigError("a loader of one's own says nothing of epochs: give max_steps")
        else:
            own, eval_data, self._has_own_data = loader, None, False
        if start := self._find_start(together=True):
            check_same_run(start, self.resolved, own.fingerprint)
        self._build(own, eval_data, total_steps)
        return self

    def _build(
        self, loader: Loader[Any], eval_data: EvalLoader | None, total_steps: int
    ) -> Loop[Any, Any]:
        start = self._find_start()
        self._trained = build_trained(self.resolved, self.tokenizer, loader, eval_data, start)
        self._engine = build_engine(self.resolved, self.ranks, self._trained, start)
        self._loop = build_loop(
            self.resolved,
            self._trained.stage,
            self._engine,
            loader,
            eval_data,
            total_steps=total_steps,
            start=start,
        )
        return self._loop

    def step(self) -> StepStats:
        """Takes the next optimizer step as `train` does (or the several steps that the stage
        prepares from one step's data), without validation, samples and checkpoints, and gives its
        StepStats. On a CPU only `train` measures `peak_bytes`. Raises RuntimeError after the last
        step."""
        self.step_ahead()
        self.loop.wait()
        return cast(StepStats, self.loop.newest)

    def step_ahead(self) -> None:
        """Takes the next step as `step` does, but without waiting for its numbers, like `train`."""
        self._check_open()
        loop = self.loop
        if self.folder is not None:
            raise RuntimeError("the run was trained already: resolve another")
        if self._steps is None:
            self._steps = cast(Generator[list[Any], None, None], loop.read())
            loop.start()
        if loop.state.step >= loop.total_steps:
            raise RuntimeError(f"all {loop.total_steps} steps of the run are taken")
        loop.step(next(self._steps))
        loop.read_back()

    def train(self) -> bool:
        """Trains to the end and records the run in its folder. Gives True when done, and False
        after an interrupt, with a checkpoint saved. All ranks call it, once."""
        self._check_open()
        if self.folder is not None or self._steps is not None or not self._has_own_data:
            raise RuntimeError("a run is trained once, on its own data: resolve another")
        self._start_ranks()
        with contextlib.ExitStack() as stack:
            watched = Heartbeat(self.ranks, self.resolved.recipe.rank_timeout_s)
            heartbeat = stack.enter_context(watched)
            # Locked before the newest checkpoint is chosen: another process might add a newer one.
            resumes = self.resolved.arguments.resume
            folder = open_together(self.resolved, self.ranks, stack) if resumes else None
            self.check()
            folder = folder or open_together(self.resolved, self.ranks, stack)
            return self._train_in(folder, heartbeat)

    def _train_in(self, folder: Path, heartbeat: Heartbeat) -> bool:
        self.folder = folder
        heartbeat.advice = (
            f"To go on from the last checkpoint, add --resume --output_dir {folder} to the command"
        )
        logger.info("%s", self.describe())
        loop = self._loop or self._build(*self._load(), self.total_steps)
        assert self._trained is not None
        if start := self._start:
            logger.info("resumed    from step %d of %s", start.step, start.folder)
        elif self.resolved.arguments.resume:
            logger.info("resumed    %s has no checkpoint yet: from the beginning", folder)
        if start and loop.state.step >= loop.total_steps:
            logger.info("all %d steps are done already: %s", loop.total_steps, start.folder)
            finished = True
        else:
            finished = train_recorded(
                self.resolved, self.tokenizer, self._trained, loop, folder, heartbeat
            )
            logger.info("%s: %s/checkpoints/latest", "done" if finished else "interrupted", folder)
        broadcast(None)  # no rank leaves before the first has written all
        return finished

    def close(self) -> None:
        """Frees the memory of models and optimizer and ends the reader thread; the run cannot be
        used afterwards. A process that is about to end need not call it."""
        if self._steps is not None:
            self._steps.close()
        if self._engine is not None:
            self._engine.close()
            unfreeze_objects()
        self._is_closed = True
        self._engine = self._loop = self._trained = self._steps = self._loaders = None

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError("the run is closed: resolve another")

    def _find_start(self, *, together: bool = False) -> Checkpoint | None:
        """Finds the newest complete checkpoint of the run to resume; None for a new run. With
        `together` rank 0 finds it for all, and all ranks call it."""
        if self.resolved.arguments.resume and self._loop is None:
            folder = Path(self.resolved.arguments.get("output_dir"), "checkpoints")
            if together:
                self._start = find_latest_together(folder, self.ranks)
            elif self._start is None:
                self._start = find_latest(folder)
        return self._start

    def _start_ranks(self) -> None:
        if self._is_started:
            return
        limit_threads(self.ranks.local_world_size)
        keep_freed_memory()
        if deterministic := self.resolved.recipe.deterministic:
            make_deterministic()
        start_ranks(self.ranks, self.resolved.device)
        use_newest_flash(self.resolved.device.torch_device, deterministic=deterministic)
        self._is_started = True

    def _load(self) -> tuple[PackedLoader, EvalLoader | None]:
        if self._loaders is None:
            self._loaders = build_loaders(self.resolved, self.tokenizer, self.ranks)
            self.resolved = self.resolved.with_total_steps(self._loaders[0])
        return self._loaders

    def _load_together(self) -> tuple[PackedLoader, EvalLoader | None]:
        """Lets rank 0 fill the token caches first; then every rank maps them. All ranks call it,
        even those that have loaded already."""
        main_first(self.ranks, self._load)
        loaders = all_do(self._load)
        check_alike({"training data": loaders[0].fingerprint})
        return loaders
