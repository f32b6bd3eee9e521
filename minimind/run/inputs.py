"""Loads the inputs of a resolved run: training and validation data, starting weights."""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor

from minimind.data.loader import EvalLoader, PackedLoader, WeightedSource
from minimind.data.mixture import parse_data_args
from minimind.data.token_cache import build_token_cache
from minimind.data.tokenizer import Tokenizer
from minimind.engine.checkpoint import Checkpoint
from minimind.engine.stage import BuildContext, Stage
from minimind.lora.folder import fingerprint, load_model_folder
from minimind.run.resolve import ResolvedRun
from minimind.runtime.ranks import Ranks
from minimind.samples.files import Split, sample_data_path
from minimind.samples.sources import find_data_file
from minimind.stages import STAGES

logger = logging.getLogger(__name__)


def build_loaders(
    run: ResolvedRun, tokenizer: Tokenizer, ranks: Ranks
) -> tuple[PackedLoader, EvalLoader | None]:
    """Builds the loaders of training and validation data; the second is None without validation
    data."""
    stage = STAGES[run.stage]
    data_format = stage.data_format.with_options(**run.recipe.format_options)

    def sources(paths: list[str], split: Split) -> list[WeightedSource]:
        return [
            WeightedSource(
                cache=build_token_cache(
                    find_data_file(path, split),
                    tokenizer,
                    data_format,
                    on_bad_row=run.arguments.get("on_bad_row"),
                    progress=ranks.is_main,
                    format_name=run.arguments.get("format"),
                ),
                weight=weight,
            )
            for path, weight in parse_data_args(paths)
        ]

    data, val_data = run.arguments.get("data"), run.arguments.get("val_data")
    if data is None:
        data = [str(sample_data_path("train", stage.sample_data))]
        val_data = val_data or [str(sample_data_path("val", stage.sample_data))]
    shared: dict[str, Any] = {
        "seq_len": run.recipe.row_len,
        "micro_batch": run.micro_batch_size,
        "rank": ranks.rank,
        "world_size": ranks.world_size,
        "pad_id": tokenizer.pad_id,
    }
    training = sources(data, "train")
    loader = PackedLoader(
        training, rows_per_step=run.train_batch_size, seed=run.recipe.seed, **shared
    )
    if not val_data:
        return loader, None
    shared |= {"max_rows": run.recipe.eval_rows, "first_unit": loader.num_units}
    validation = sources(val_data, "val")
    _report_repeated(training, validation)
    return loader, EvalLoader(validation, **shared)


def _report_repeated(training: list[WeightedSource], validation: list[WeightedSource]) -> None:
    """Warns where a validation file has the same content as a training file, even under another
    name."""
    trained = {source.cache.key: source.cache.path for source in training}
    for source in validation:
        if path := trained.get(source.cache.key):
            logger.warning(
                "%s holds the rows of %s, which are trained on: their loss tells nothing of other "
                "text, and the best checkpoint is chosen by it; give --val_data rows of its own",
                source.cache.path,
                path,
            )


def build_context(
    run: ResolvedRun, tokenizer: Tokenizer | None, start: Checkpoint | None = None, **more: Any
) -> BuildContext:
    """Gives the context in which a stage is checked and built. `start` is the checkpoint that the
    run continues; `more` holds weights and data, which only building needs."""
    return BuildContext(
        config=run.config,
        weights_folder=run.weights_folder,
        checkpoint=start.folder if start else None,
        device=run.device.torch_device,
        dtype=run.dtype,
        tokenizer=tokenizer,
        **more,
    )


def hash_helpers(stage: Stage[Any, Any], context: BuildContext) -> str:
    """Gives a fingerprint of the helper's weights; "" without a helper."""
    folder = stage.helper_folder(context)
    return fingerprint(folder) if folder else ""


def load_start(run: ResolvedRun) -> dict[str, Tensor] | None:
    """Loads the weights that a new run starts from, by name; None where it starts fresh. Warns of
    16-bit weights with a small learning rate, whose updates would be smaller than the rounding
    error."""
    if run.weights_folder is None:
        return None
    _, weights = load_model_folder(run.weights_folder)
    rounded = {str(w.dtype).removeprefix("torch.") for w in weights.values()} - {"float32"}
    if rounded and run.learning_rate < 1e-6:
        logger.warning(
            "%s holds %s weights, which a learning rate of %.0e hardly moves beyond their "
            "rounding: start from fp32 weights, as the model/ folder of a checkpoint has them",
            run.weights_folder,
            " and ".join(sorted(rounded)),
            run.learning_rate,
        )
    return weights
