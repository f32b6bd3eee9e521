"""Defines the step that trains a model."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from minimind.config.deepspeed_json import load_ds_config
from minimind.data.mixture import parse_data_args
from minimind.errors import CheckpointError
from minimind.lora.folder import find_model_folder, fingerprint
from minimind.pipeline.data_heads import estimate_steps
from minimind.pipeline.stand_ins import write_model
from minimind.pipeline.step import (
    Checked,
    Inputs,
    Place,
    Results,
    Step,
    digest_contents,
    digest_data,
    versions_of,
)
from minimind.run.arguments import TrainArguments, collect_arguments
from minimind.run.checks import check_num_steps, check_run
from minimind.run.inputs import build_context
from minimind.run.run import Run
from minimind.runtime.devices import check_kernels
from minimind.runtime.ranks import Ranks
from minimind.samples.files import Split
from minimind.stages import STAGES

REFERENCE = "step:"
"""Begins a value that stands for an earlier step's folder, as in "teacher": "step:large"."""
_CODE_FILE = re.compile(r"(.+?\.py):")
_LEAVES_NO_TRACE = frozenset(
    {
        *("micro_batch_size", "log_every", "save_every", "keep_checkpoints", "keep_every"),
        *("sample_every", "sample_prompts", "rank_timeout_s", "activation_checkpointing"),
        *("cuda_graph", "reward_workers", "reward_timeout_s", "rollout_batch", "lora_plot"),
    }
)
"""Options that change how a run computes or what it shows, but not what it learns."""
_OF_RESULT = ("optimizer", "scheduler", "bf16", "fp16")
"""The keys of the DeepSpeed JSON that change what is learned, besides those that the recipe has
too. All other keys (the ZeRO stage, buckets, offloading, monitors) may change when a run is
resumed."""


class TrainStep(Step):
    """Trains a model by `minimind train`."""

    verb: ClassVar[str] = "train"

    def __init__(
        self,
        name: str,
        where: str,
        options: Mapping[str, Any],
        *,
        source: str | None = None,
        takes_tokenizer: bool = False,
        references: Sequence[str] = (),
    ) -> None:
        """`options` are keyword arguments of Run.resolve. The step `source` gives the weights to
        start from, or with `takes_tokenizer` the tokenizer; `references` name steps that options
        refer to."""
        taken = [source, *references] if source else references
        super().__init__(name, dict.fromkeys(taken), where)
        self.options = options
        self.source = source
        self._takes_tokenizer = takes_tokenizer

    @property
    def stage(self) -> str:
        return self.options.get("stage", "pretrain")

    @property
    def title(self) -> str:
        return f"stage {self.stage}"

    def check(self, results: Results, place: Place) -> Checked:
        run = self._resolve(results, place)
        check_run(run.resolved, run.tokenizer)
        num_steps, is_exact = estimate_steps(run.resolved, run.tokenizer)
        if num_steps and is_exact:
            check_num_steps(run.resolved, num_steps)
        return Checked(run=run, num_steps=num_steps, is_exact=is_exact)

    def write_stand_in(self, folder: Path, checked: Checked) -> None:
        assert checked.run is not None
        write_model(folder, checked.run.resolved.config, checked.run.tokenizer)

    def inputs(self, results: Results, place: Place) -> Inputs:
        run = self._resolve(results, place)
        resolved, arguments = run.resolved, run.resolved.arguments
        recipe = dataclasses.asdict(resolved.recipe)
        recipe |= {name: text for name, text in _flat(self.options).items() if _is_reference(text)}
        json_keys = load_ds_config(arguments.get("ds_config"), arguments.ds_config)
        found: Inputs = {
            "stage": resolved.stage,
            **{name: value for name, value in recipe.items() if name not in _LEAVES_NO_TRACE},
            **{f"model.{name}": value for name, value in resolved.config.to_dict().items()},
            **{f"ds_config.{key}": json_keys[key] for key in _OF_RESULT if key in json_keys},
            "format": arguments.get("format"),
            "on_bad_row": arguments.get("on_bad_row"),
            "tokenizer": run.tokenizer.fingerprint,
        }
        if resolved.weights_folder:
            found["weights to start from"] = fingerprint(resolved.weights_folder)
        context = build_context(resolved, run.tokenizer)
        helper = STAGES[resolved.stage](resolved.recipe).helper_folder(context)
        if helper and helper != resolved.weights_folder:
            found["weights of the helper"] = fingerprint(helper)
        sample = f"sample:{STAGES[resolved.stage].sample_data.name}"
        data = arguments.get("data") or [sample]
        val_data = arguments.get("val_data") or ([] if arguments.get("data") else [sample])
        splits: dict[Split, Sequence[str]] = {"train": data, "val": val_data}
        for split, names in splits.items():
            parsed = parse_data_args(names) if names else []
            found |= digest_data([path for path, _ in parsed], split)
            found[f"shares of the data ({split})"] = [share for _, share in parsed]
        return found | _digest_code(recipe) | versions_of("torch", "deepspeed")

    def flags(self, results: Results, folder: Path) -> list[str]:
        return self._arguments(results, folder).to_flags()

    def is_complete(self, folder: Path) -> bool:
        try:
            find_model_folder(folder)
        except CheckpointError:
            return False
        return True

    def _resolve(self, results: Results, place: Place) -> Run:
        if place.is_here:
            check_kernels(place.device)
        # The folder does not exist: whether the step's own folder can be used is decided when the
        # step is made.
        arguments = self._arguments(results, place.folder / f"{self.name}-to-check")
        return Run.on(arguments, Ranks(0, 0, place.ranks), place.device)

    def _arguments(self, results: Results, folder: Path) -> TrainArguments:
        options = {name: _fill(value, results) for name, value in self.options.items()}
        if self.source:
            taken = "tokenizer" if self._takes_tokenizer else "from_checkpoint"
            options[taken] = str(results[self.source])
        return collect_arguments(options | {"output_dir": str(folder)})


def find_references(options: Mapping[str, Any]) -> list[str]:
    """Gives the names of the steps that options refer to."""
    values = _flat(options).values()
    return [value.removeprefix(REFERENCE) for value in values if _is_reference(value)]


def _is_reference(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(REFERENCE)


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """Gives the options as one dictionary, with those of `set` merged in."""
    more = options.get("set")
    return {**options, **(more if isinstance(more, dict) else {})}


def _fill(value: Any, results: Results) -> Any:
    """Replaces references by folders."""
    if isinstance(value, dict):
        return {name: _fill(one, results) for name, one in value.items()}
    return str(results[value.removeprefix(REFERENCE)]) if _is_reference(value) else value


def _digest_code(recipe: Mapping[str, Any]) -> Inputs:
    """Gives the digests of the user's own Python files with rewards and tools."""
    named = [*recipe.get("rewards", {}), *recipe.get("tools", {}).values()]
    files = [found[1] for text in named if (found := _CODE_FILE.match(text))]
    return {f"content of {path}": digest_contents([path]) for path in files}
