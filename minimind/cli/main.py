"""Runs the verb of `minimind VERB …`. PyTorch is not imported before the verb does it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from minimind import __version__
from minimind.config.spelling import did_you_mean
from minimind.errors import MiniMindError, TrainingError
from minimind.runtime.printable import printable

VERBS = {
    "train": "trains a model with one of the stages, on any number of ranks",
    "chat": "talks with a model in the terminal",
    "serve": "serves models with OpenAI's API",
    "web": "opens a web page to chat with a server",
    "evaluate": "measures checkpoints side by side",
    "answer": "answers a file of conversations, as data for another model",
    "convert": "converts a checkpoint to another format",
    "tokenizer": "trains a tokenizer on your text",
    "pipeline": "runs the steps of a recipe, from text to a chat model, and reports",
}
"""The help text of each verb. minimind/cli/VERB.py holds its `main`, and `run_process` where the
process must end in a special way."""

EXTRAS = {
    "serve": ("fastapi", "openai", "prometheus_client", "pydantic", "starlette", "uvicorn"),
    "web": ("streamlit",),
    "eval": ("lm_eval",),
    "interop": ("transformers",),
}
"""The packages that each optional extra installs."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb as the console script; returns its exit status, or 2 for an unknown verb."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    rank = []
    if arguments and arguments[0].startswith("--local_rank="):
        # `deepspeed --module minimind train …` puts its --local_rank in front of all else.
        rank = [arguments.pop(0)]
    verb = arguments[0] if arguments else ""
    if verb in ("-h", "--help"):
        print(describe())
        return 0
    if not verb:
        print(describe(), file=sys.stderr)
        return 2
    if verb == "--version":
        print(f"minimind {__version__}")
        return 0
    if verb not in VERBS:
        print(
            f"error: there is no verb {verb!r}{did_you_mean(verb, VERBS)}; the verbs are "
            f"{', '.join(VERBS)}",
            file=sys.stderr,
        )
        return 2
    # argparse writes this into its usage lines.
    sys.argv[0] = f"minimind {verb}"
    return run_verb(verb, [*rank, *arguments[1:]])


def run_verb(verb: str, argv: Sequence[str]) -> int:
    """Runs one of VERBS and returns its exit status. Prints the error that stops the verb. Returns
    2 for an error that the user can correct and for a missing package of an extra; 1 where a step
    of a pipeline fails, memory or disk is full, or the reader of the output has closed it; and 130
    for Ctrl-C."""
    try:
        module = importlib.import_module(f"minimind.cli.{verb}")
        return getattr(module, "run_process", module.main)(argv)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        extra = next((name for name, packages in EXTRAS.items() if package in packages), None)
        if extra is None:
            raise
        print(
            f"error: {verb} needs {package}, which is not installed: "
            f"pip install 'minimind[{extra}]'",
            file=sys.stderr,
        )
        return 2
    except (MiniMindError, TrainingError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2 if isinstance(error, MiniMindError) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        if not _drop_unread_output():
            raise
        return 1
    except (OSError, MemoryError, RuntimeError) as error:
        from minimind.cli.failures import describe_failure

        said = describe_failure(error)
        if said is None:
            raise
        print(printable(f"error: {said}"), file=sys.stderr)
        return 1


def _drop_unread_output() -> bool:
    """Tells whether the reader of the output has closed it, as `| head` does. If so, discards the
    rest of the output: the interpreter would otherwise fail again when it flushes the output at its
    end."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def describe() -> str:
    """Gives the text of --help."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {text}" for name, text in VERBS.items())
    return (
        "usage: minimind VERB [options]\n\n"
        "Trains tiny language models from raw text to a chat server.\n\n"
        f"{verbs}\n\n"
        "minimind VERB --help lists the options of a verb; minimind --version prints the version.\n"
        "Several GPUs or processes: deepspeed --module minimind train [options]"
    )
