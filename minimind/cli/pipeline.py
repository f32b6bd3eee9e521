"""Runs the steps of a recipe, from text to a chat model: `minimind pipeline tiny`."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from minimind.cli.verb_parser import VerbParser
from minimind.config.shipped import list_shipped
from minimind.errors import ConfigError
from minimind.pipeline.make import Stopped, make_all, open_folder
from minimind.pipeline.plan import describe_plan, plan_pipeline
from minimind.pipeline.process import LAUNCHERS, check_not_launched
from minimind.pipeline.recipe_file import RECIPES, Pipeline, check_ranks, load_pipeline
from minimind.pipeline.report import write_report
from minimind.pipeline.step import Place
from minimind.rehearsal.fits import read_place
from minimind.run.folder import RUNS
from minimind.runtime.devices import find_device
from minimind.runtime.logging import set_up_logging

logger = logging.getLogger("minimind")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a pipeline; gives the exit status: 0 done, 130 interrupted."""
    set_up_logging(0)
    options = _parser().parse_args(argv)
    try:
        check_not_launched()
        pipeline = load_pipeline(options.recipe, options.data_dir)
        place = _choose_place(options, pipeline)
        if options.dry_run:
            print(describe_plan(pipeline, place, plan_pipeline(pipeline, place)))
            return 0
        with open_folder(place.folder):
            _run(pipeline, place, _choose_launcher(options, pipeline, place))
        return 0
    except Stopped as stopped:
        logger.info("stopped in step %s; the same command goes on from there", stopped)
        return 130
    except KeyboardInterrupt:
        logger.info("stopped between steps; the same command goes on from there")
        return 130


def _run(pipeline: Pipeline, place: Place, launcher: str) -> None:
    planned = plan_pipeline(pipeline, place)
    logger.info("%s", describe_plan(pipeline, place, planned))
    made = make_all(planned, place, launcher)
    page, *others = reversed(write_report(pipeline, place, made))
    logger.info("report: %s, and %s", page, ", ".join(map(str, others)))


def _choose_place(options: argparse.Namespace, pipeline: Pipeline) -> Place:
    folder = options.output_dir or RUNS / pipeline.name
    if options.on:
        if not options.dry_run:
            raise ConfigError(f"--on {options.on} says where a --dry_run looks: add --dry_run")
        if options.ranks:
            raise ConfigError(f"--on {options.on} names the ranks: leave out --ranks")
        return Place(*read_place(options.on), folder, is_here=False)
    check_ranks(options.ranks, "--ranks")
    device = find_device()
    here = torch.cuda.device_count() if device.kind == "gpu" else 1
    ranks = options.ranks or pipeline.ranks or here
    if device.kind == "gpu" and ranks > here:
        raise ConfigError(
            f"{ranks} ranks need as many GPUs, and PyTorch sees {here}: give --ranks {here}"
        )
    return Place(device, ranks, folder)


def _choose_launcher(options: argparse.Namespace, pipeline: Pipeline, place: Place) -> str:
    usual = "python" if place.ranks == 1 else "deepspeed"
    launcher = options.launcher or pipeline.launcher or usual
    if launcher == "python" and place.ranks > 1:
        raise ConfigError(
            f"the launcher python starts one rank, not {place.ranks}: give --ranks 1, or "
            "--launcher deepspeed or torchrun"
        )
    return launcher


def _parser() -> VerbParser:
    parser = VerbParser(
        description="Runs the steps of a recipe, from text to a chat model, and reports. A second "
        "call makes what is missing or has other inputs, and goes on where the first was stopped.",
        epilog=f"shipped recipes: {', '.join(list_shipped(RECIPES))}; docs/pipeline.md says how to "
        "write one",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("recipe", metavar="RECIPE", help="a JSON file, or the name of a shipped one")
    add("--data_dir", metavar="FOLDER", help="where relative paths of data begin")
    add(
        "--output_dir",
        type=Path,
        metavar="FOLDER",
        help="the pipeline's folder (default: runs/NAME of the recipe)",
    )
    add(
        "--ranks",
        type=int,
        metavar="N",
        help="processes that train together (default: the recipe's, else one for each GPU)",
    )
    add(
        "--launcher",
        choices=LAUNCHERS,
        help="what starts them (default: python for one, deepspeed for several)",
    )
    add(
        "--dry_run",
        action="store_true",
        help="check everything, show each step with its predicted memory and time, and stop",
    )
    add(
        "--on",
        metavar="DEVICE[:RANKS]",
        help="where a --dry_run looks, such as h200:8 or rtx4090 (default: here)",
    )
    return parser
