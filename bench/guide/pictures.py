"""Draws the pictures of the guide. What an example has computed is taken from the example; the rest
is computed here with the project's own functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.guide.pages import GUIDE
from minimind.config.model import load_model_config
from minimind.data.packing import build_row, plan_packing
from minimind.engine.schedule import CosineSchedule
from minimind.model.rope import rope_tables
from minimind.pictures.style import COLORS, GRID, PAPER, picture
from minimind.stages.lora import LoraRecipe

FIGURES = GUIDE / "figures"
_WIDTH, _HEIGHT = 7.0, 3.0


def draw_tokenizer(example: Mapping[str, Any]) -> Path:
    return _lines(
        "tokenizer", {name: example["rates"][name] for name in ("English", "Chinese")},
        example["sizes"], xlabel="vocabulary", ylabel="bytes a token", marker="o",
    )  # fmt: skip


def draw_data() -> Path:
    documents = [np.arange(6), np.arange(7)]
    targets = [np.arange(6) >= 3, np.arange(7) >= 4]
    row = build_row(list(zip(documents, targets, strict=True)), 16, 0)
    same = row.doc_T[:, None] == row.doc_T[None, :]
    sees = same & np.tri(16, dtype=bool) & (row.doc_T >= 0)[:, None]
    with picture(FIGURES / "data.png", 5.4, 4.2) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(8, 1), sharey=True)
        left.pcolormesh(np.where(sees, 1.0, np.nan), vmin=1, vmax=5)
        is_target = np.where(row.labels_T[:, None] != -100, 1.0, np.nan)
        right.pcolormesh(is_target, vmin=-3, vmax=1)
        for axes in (left, right):
            axes.grid(visible=True, color=GRID)
            axes.set_yticks(range(17), [])
            axes.set_xticks(range(17 if axes is left else 2), [])
        left.set(xlabel="may be seen", ylabel="token", ylim=(16, 0))
        left.set_aspect("equal")
        right.set_xlabel("target")
    return FIGURES / "data.png"


def draw_model() -> Path:
    """Draws the product of a query with an equal key over their distance: it is the mean of the
    cosines."""
    distances = np.unique(np.geomspace(1, 4096, 240).astype(int))
    curves = {}
    for theta in (1e4, 1e6):
        config = load_model_config("minimind3", {"rope_theta": theta})
        cos_PR, _ = rope_tables(config, 4097, torch.device("cpu"))
        curves[f"theta {theta:,.0f}"] = cos_PR[distances].mean(-1).numpy()
    return _lines(
        "model", curves, distances, xlabel="distance", ylabel="product, 1 at 0", xscale="log"
    )


def draw_kernels(example: Mapping[str, Any]) -> Path:
    kept = dict(reversed(example["kept"].items()))
    with picture(FIGURES / "kernels.png", _WIDTH, 1 + 0.3 * len(kept)) as figure:
        axes = figure.subplots()
        places = np.arange(len(kept))
        for number, name in enumerate(("plain PyTorch", "ours")):
            sizes = [pair[number] for pair in kept.values()]
            axes.barh(places + 0.2 - 0.4 * number, sizes, 0.4, label=name, color=COLORS[number])
        axes.set_yticks(places, kept)
        axes.set(xlabel="MiB kept for the backward pass")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return FIGURES / "kernels.png"


def draw_loop() -> Path:
    steps = range(1000)
    curves = {
        f"{warmup} warm-up steps": [CosineSchedule(5e-4, 1000, warmup)(step) for step in steps]
        for warmup in (0, 100)
    }
    return _lines("loop", curves, steps, xlabel="optimizer step", ylabel="learning rate")


def draw_packing() -> Path:
    lengths = np.clip(np.random.default_rng(3).lognormal(4.3, 0.7, 24).astype(int), 16, 256)
    plan = plan_packing(lengths, 256)
    colors = [COLORS[number % len(COLORS)] for number in range(len(lengths))]
    heights = {"padded": len(lengths), "packed": plan.num_rows}
    with picture(FIGURES / "packing.png", _WIDTH, 4.2) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=tuple(heights.values()))
        above.barh(range(len(lengths)), lengths, 0.9, color=colors, edgecolor=PAPER)
        for row in range(plan.num_rows):
            part = slice(plan.row_offsets[row], plan.row_offsets[row + 1])
            ends = np.cumsum(plan.piece_len[part])
            for document, size, end in zip(
                plan.piece_doc[part], plan.piece_len[part], ends, strict=True
            ):
                below.barh(row, size, 0.9, left=end - size, color=colors[document], edgecolor=PAPER)
        for axes, (name, rows) in zip((above, below), heights.items(), strict=True):
            share = lengths.sum() / (rows * lengths.max() if name == "padded" else rows * 256)
            axes.set_title(f"{name}: {rows} rows, {1 - share:.0%} padding")
            axes.set_yticks([])
            axes.grid(visible=False)
            axes.set_ylim(-0.6, rows - 0.4)
        below.set(xlabel="token of the row", xlim=(0, 256))
    return FIGURES / "packing.png"


def draw_lora() -> Path:
    config = load_model_config("minimind2-small")
    ranks = [1, 2, 4, 8, 16, 32, 64, 128]
    trained = [LoraRecipe(lora_ranks={"default": rank}).count_weights(config)[0] for rank in ranks]
    state = [(2 * config.num_parameters + 18 * count) / 1e6 for count in trained]
    full = [18 * config.num_parameters / 1e6] * len(ranks)
    curves = {"adapters": state, "full fine-tuning": full}
    return _lines(
        "lora",
        curves,
        ranks,
        xlabel="rank",
        ylabel="MB of training state",
        xscale="log",
        marker="o",
    )


def draw_dpo() -> Path:
    margins = np.linspace(-6, 6, 200)
    curves = {
        "loss": np.log1p(np.exp(-margins)),
        "weight of the gradient / beta": 1 / (1 + np.exp(margins)),
    }
    return _lines("dpo", curves, margins, xlabel="margin", ylabel="")


def draw_distillation(example: Mapping[str, Any]) -> Path:
    logits = example["logits"]
    with picture(FIGURES / "distillation.png", _WIDTH, _HEIGHT) as figure:
        axes = figure.subplots()
        for number, temperature in enumerate((1.0, 1.5, 4.0)):
            shares = (logits / temperature).softmax(-1).numpy()
            places = np.arange(len(shares)) + 0.27 * (number - 1)
            axes.bar(places, shares, 0.27, label=f"T = {temperature:g}", color=COLORS[number])
        axes.set(xlabel="token", ylabel="probability")
        axes.set_xticks(range(len(logits)))
        axes.legend()
    return FIGURES / "distillation.png"


def draw_rl() -> Path:
    ratios = np.linspace(0.01, 2, 400)
    clipped = np.clip(ratios, 0.8, 1.2)
    with picture(FIGURES / "rl.png", _WIDTH, _HEIGHT) as figure:
        left, right = figure.subplots(1, 2)
        for number, sign in enumerate((1, -1)):
            objective = np.minimum(ratios * sign, clipped * sign)
            follows = np.where(ratios * sign <= clipped * sign, ratios * sign, 0.0)
            name = f"A = {sign:+d}"
            left.plot(ratios, objective, label=name, color=COLORS[number], linestyle="-")
            right.plot(ratios, follows, label=name, color=COLORS[number], linestyle="-")
        left.set(xlabel="ratio", ylabel="objective")
        right.set(xlabel="ratio", ylabel="push on log π")
        left.legend()
    return FIGURES / "rl.png"


def draw_serving() -> Path:
    made = np.arange(1, 1001)
    prompt = 200
    curves = {"with a cache": prompt + made - 1, "without": prompt * made + made * (made - 1) / 2}
    return _lines(
        "serving", curves, made, xlabel="tokens of the answer", ylabel="tokens through the model",
        yscale="log",
    )  # fmt: skip


def draw_measuring(example: Mapping[str, Any]) -> Path:
    with picture(FIGURES / "measuring.png", _WIDTH, _HEIGHT) as figure:
        axes = figure.subplots()
        bins = np.linspace(-30, 30, 61)
        for number, name in enumerate(("one_after_the_other", "in_turns")):
            values = 100 * np.clip(example[name], -0.3, 0.3)
            axes.hist(values, bins, alpha=0.75, color=COLORS[number], label=name.replace("_", " "))
        axes.set(xlabel="difference in %", ylabel="measurements")
        axes.legend()
    return FIGURES / "measuring.png"


def _lines(
    name: str, curves: Mapping[str, Any], x: Any, *, marker: str = "", **labels: Any
) -> Path:
    path = FIGURES / f"{name}.png"
    with picture(path, _WIDTH, _HEIGHT) as figure:
        axes = figure.subplots()
        for number, (label, values) in enumerate(curves.items()):
            axes.plot(x, values, label=label, color=COLORS[number], marker=marker)
        axes.set(**labels)
        axes.legend()
    return path


PICTURES: Mapping[str, Callable[[], Path]] = {
    "data": draw_data, "model": draw_model, "loop": draw_loop, "packing": draw_packing,
    "lora": draw_lora, "dpo": draw_dpo, "rl": draw_rl, "serving": draw_serving,
}  # fmt: skip
"""The pictures that need no example, by the name of their file."""
FROM_EXAMPLES: Mapping[str, Callable[[Mapping[str, Any]], Path]] = {
    "tokenizer_sizes": draw_tokenizer, "kernels_memory": draw_kernels,
    "distillation_temperature": draw_distillation, "measuring_turns": draw_measuring,
}  # fmt: skip
"""The pictures of what an example has computed, by the example's name; they take its variables."""
