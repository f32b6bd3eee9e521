"""Gives each method what it trains: the model, the documents and the number of steps that hold the
asked tokens."""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np

from bench.learning.methods import Method
from bench.train.documents import Documents, draw_documents
from bench.train.specs import RowSpec
from minimind.config.recipe import parse_assignments
from minimind.data.tokenizer import Tokenizer
from minimind.run.arguments import collect_arguments
from minimind.run.run import Run
from minimind.runtime.devices import Device
from minimind.runtime.ranks import read_ranks
from minimind.samples.text import load_sample_tokenizer

DS_CONFIG = "zero2.json"
_HELD_OUT_TOKENS = 60_000


def draw_held_out(options: argparse.Namespace) -> Documents:
    """Draws the held-out documents, the same ones for every method and seed."""
    return draw_documents(
        options.val_data,
        _find_tokenizer(options),
        max_tokens=options.document_tokens,
        wanted_tokens=_HELD_OUT_TOKENS,
        seed=0,
        split="val",
    )


def build_spec(options: argparse.Namespace, method: Method, seed: int, device: Device) -> RowSpec:
    """Gives the run of one method from one seed. Raises a MiniMindError for a run that cannot
    work."""
    sizes = method.sizes(device.kind, options.model)
    documents = draw_documents(
        options.data,
        _find_tokenizer(options),
        max_tokens=options.document_tokens,
        wanted_tokens=options.tokens,
        seed=seed,
    )
    a_row = sizes.seq_len
    if method.row == "original":
        a_row = float(np.mean(documents.lengths))
    steps = max(1, round(options.tokens / (sizes.train_batch_size * a_row)))
    settings = {
        **parse_assignments(options.set),
        "seed": seed,
        "micro_batch_size": sizes.micro_batch_size,
        "train_batch_size": sizes.train_batch_size,
        **method.settings,
    }
    arguments = collect_arguments(
        {
            "stage": "pretrain", "model": options.model, "tokenizer": options.tokenizer,
            "ds_config": DS_CONFIG, "seq_len": sizes.seq_len, "max_steps": steps,
            "learning_rate": method.learning_rate, "set": settings,
        }
    )  # fmt: skip
    run = Run.on(arguments, read_ranks(), device)
    return RowSpec(
        name=method.row,
        ds_config_name=None if method.row == "original" else DS_CONFIG,
        run=run.resolved,
        documents=replace(documents, short_first=method.short_first),
        original_batch=sizes.micro_batch_size,
        steps=steps,
    )


def _find_tokenizer(options: argparse.Namespace) -> Tokenizer:
    return Tokenizer.load(options.tokenizer) if options.tokenizer else load_sample_tokenizer()
