"""Trains a model: `deepspeed launch/train.py --ds_config zero2.json` (minimind/cli/train.py)."""

from __future__ import annotations

from minimind.cli.train import main, run_process

__all__ = ["main"]

if __name__ == "__main__":
    run_process()
