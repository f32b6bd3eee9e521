"""Rehearses a run's step or a decoding step in this process, on tensors without storage."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from minimind_kernels.triton_impl import config

from minimind.config.model import load_model_config
from minimind.inference.batch_engine import BatchEngine
from minimind.inference.load import usual_dtype
from minimind.inference.request import GenerationRequest
from minimind.inference.sampling import SamplingParams
from minimind.model.transformer import Transformer
from minimind.rehearsal.fake_cuda import FakeCuda
from minimind.rehearsal.fake_machine import join_fake_ranks, set_environment, without_storage
from minimind.rehearsal.holders import Moments, name_holders
from minimind.rehearsal.roofline import estimate
from minimind.rehearsal.watch import Watch
from minimind.run.arguments import TrainArguments
from minimind.run.run import Run
from minimind.runtime.devices import Device, find_device
from minimind.runtime.gpus import GPUS
from minimind.runtime.ranks import Ranks
from minimind.samples.text import load_sample_tokenizer
from minimind.stages import STAGES

_TOKENS = 24
"""Tokens generated for each sequence; the first half comes before the measured step, so that graphs
are captured by then."""
_STEPS = 3
"""Steps of a rehearsed run. The second one is measured: all that is made only once exists by then.
"""


class Rehearsals:
    """Rehearses training and decoding steps in this process, on one device, as rank 0 of
    `world_size` ranks."""

    def __init__(self, device: str, world_size: int) -> None:
        """Prepares the process. `device` is a name in GPUS, or "cpu" for this machine's CPU."""
        self._world_size = world_size
        self._gpu = GPUS.get(device)
        set_environment("gpu" if self._gpu else "cpu", world_size)
        if self._gpu:
            FakeCuda(device, self._gpu, world_size, lambda: self._watch).install()
        self._device: Device = find_device()
        join_fake_ranks(world_size, self._device)
        self._caches = _find_caches()
        self._watch: Watch

    def rehearse(self, given: dict[str, Any]) -> dict[str, Any]:
        """Takes one step of the run with the arguments `given`; gives the fields of a Rehearsal
        except `seconds`. Raises a MiniMindError for what the run itself would be refused for."""
        given["recipe"]["max_steps"] = _STEPS
        arguments = TrainArguments(**given, resume=False, dry_run=False, local_rank=None)
        moments = Moments()
        with self._machine(moments) as watch:
            run = Run.on(arguments, Ranks(0, 0, self._world_size), self._device).build()
            with moments.of(run.loop):
                for _ in range(_STEPS - 2):
                    run.step_ahead()
                name_holders(watch.live, run.loop.engine, run.models)
                watch.live.start()
                watch.is_counting = True
                run.step_ahead()
                watch.is_counting = False
            resolved = run.resolved
            run.close()
        packed = STAGES[resolved.stage].data_format.packed
        overlaps = bool((resolved.ds_config.get("zero_optimization") or {}).get("overlap_comm"))
        return self._report(
            watch,
            resolved.train_batch_size * resolved.seq_len if packed else None,
            # With CUDA graphs all gradients appear at once, so no reduction overlaps the backward.
            overlaps=overlaps and not resolved.recipe.cuda_graph,
        )

    def generate(self, given: dict[str, Any]) -> dict[str, Any]:
        """Takes one decoding step, in which each of `batch` sequences gets a token; gives the same
        fields as `rehearse`. Raises ConfigError for what the engine would refuse."""
        tokenizer = load_sample_tokenizer()
        config = load_model_config(given["model"], tokenizer_vocab=tokenizer.vocab_size)
        batch, length = given["batch"], given["length"]
        params = SamplingParams(max_new_tokens=_TOKENS, **given["params"])
        moments = Moments()
        with self._machine(moments) as watch, moments.during("weights"):
            dtype = usual_dtype(self._device)
            model = Transformer(config).to(self._device.torch_device, dtype)
            with moments.during("cache"):
                engine = BatchEngine(
                    model.eval(), tokenizer, max_batch=batch, max_tokens=batch * length
                )
            for _ in range(batch):
                prompt = [1] * (length - _TOKENS)
                engine.submit(GenerationRequest(prompt_ids=prompt, params=params))
            with moments.during("decoding"):
                for _ in range(_TOKENS // 2):
                    engine.step()
                watch.live.start()
                watch.is_counting = True
                engine.step()
                watch.is_counting = False
        return self._report(watch, batch, overlaps=False)

    def _report(self, watch: Watch, tokens: int | None, *, overlaps: bool) -> dict[str, Any]:
        tally = watch.tally
        roofline = None
        if self._gpu:
            roofline = asdict(
                estimate(
                    tally.work,
                    tally.launches.total(),
                    tally.operators.total(),
                    tally.collectives,
                    self._gpu,
                    self._world_size,
                    overlaps=overlaps,
                )
            )
        return {
            "device": self._device.name,
            "world_size": self._world_size,
            "tokens": tokens,
            "launches": tally.launches,
            "operators": tally.operators,
            "collectives": tally.collectives,
            "waits": [(kind, place, count) for (kind, place), count in tally.waits.items()],
            "flops": sum(work.flops for work in tally.work),
            "kernel_bytes": tally.kernel_bytes,
            "peak": {name: held for name, held in watch.live.peak.items() if held},
            "roofline": roofline,
        }

    @contextlib.contextmanager
    def _machine(self, moments: Moments) -> Iterator[Watch]:
        self._watch = Watch("cuda" if self._gpu else "cpu", moments.holder)
        gpu = self._gpu
        arch = "sm_{}{}".format(*gpu.capability) if gpu else "sm_90"
        laid_out = config.Device(arch, gpu.multiprocessors if gpu else 1)
        for cache in self._caches:
            cache.cache_clear()
        with without_storage(self._watch, laid_out):
            yield self._watch


def _find_caches() -> set[Any]:
    """Finds the lru_caches of minimind.model, which are cleared because they hold an earlier
    rehearsal's tensors."""
    modules = [module for name, module in sys.modules.items() if name.startswith("minimind.model.")]
    things = [thing for module in modules for thing in vars(module).values()]
    return {thing for thing in things if isinstance(thing, functools._lru_cache_wrapper)}
