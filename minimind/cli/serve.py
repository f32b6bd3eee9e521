"""Serves checkpoints with OpenAI's API: `minimind serve --checkpoint RUN`."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from minimind.cli.verb_parser import VerbParser
from minimind.config.environment import KEY_VARIABLE
from minimind.errors import ConfigError, MiniMindError
from minimind.inference.load import add_dtype_flag, choose_placement
from minimind.lora.folder import find_base, find_model_folder, fingerprint, is_adapter_folder
from minimind.serving.server import serve, set_up_server_logging
from minimind.serving.service import ModelSource
from minimind.serving.settings import ServerSettings

logger = logging.getLogger("minimind")

NUMBERS = {
    "max_body_bytes": "of a request's body",
    "max_new_tokens": "tokens of an answer",
    "max_calls": "calls in progress at once",
    "max_waiting": "generations that wait for a cache slot, per model; beyond it 429",
    "body_timeout_s": "seconds for a client to send a request's head, and its body",
    "send_timeout_s": "seconds for a client to take the next piece of its answer",
    "answer_timeout_s": "seconds for a whole answer",
    "shutdown_s": "seconds for answers in progress to end after SIGTERM",
}
"""Settings that have a flag of the same name, with their help texts."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _build_parser().parse_args(argv)
    set_up_server_logging()
    try:
        settings = ServerSettings(
            host=arguments.host,
            port=arguments.port,
            api_keys=read_keys(arguments.api_key, arguments.api_key_file),
            allow_no_key=arguments.allow_no_key,
            log_prompts=arguments.log_prompts,
            cors_origins=tuple(arguments.cors_origin),
            allowed_hosts=tuple(name.lower() for name in arguments.allowed_host),
            parse_special=arguments.parse_special,
            **{name: getattr(arguments, name) for name in NUMBERS},
        )
        serve(read_sources(arguments), settings)
    except MiniMindError as error:
        logger.error("error: %s", error)  # as JSON, like all lines of the log
        return 2
    return 0


def read_sources(arguments: argparse.Namespace) -> dict[str, ModelSource]:
    """Reads the --checkpoint flags, by the name given with NAME=FOLDER or the folder's own name."""
    placement = choose_placement(dtype=arguments.dtype)
    sources: dict[str, ModelSource] = {}
    for given in arguments.checkpoint:
        name, equals, path = given.partition("=")
        if not equals:
            name, path = Path(given).resolve().name, given
        if not name or name in sources:
            raise ConfigError(
                f"--checkpoint {given}: the model's name {name!r} is "
                f"{'taken' if name else 'empty'}; give NAME=FOLDER with a name of its own"
            )
        sources[name] = ModelSource(
            folder=find_model_folder(Path(path)),
            placement=placement,
            max_batch=arguments.max_batch,
            max_tokens=arguments.max_tokens,
        )
    for given in arguments.adapter:
        name, _, path = given.partition("=")
        if not name or not path or any(name in (n, *s.adapters) for n, s in sources.items()):
            raise ConfigError(f"--adapter {given}: give NAME=FOLDER with a name of its own")
        base = _find_base(given, Path(path), sources)
        adapters = {**sources[base].adapters, name: find_model_folder(Path(path))}
        sources[base] = dataclasses.replace(sources[base], adapters=adapters)
    return sources


def _find_base(given: str, path: Path, sources: dict[str, ModelSource]) -> str:
    """Gives the name of the checkpoint whose weights the adapter was trained with."""
    folder = find_model_folder(path)
    if not is_adapter_folder(folder):
        raise ConfigError(f"--adapter {given}: a whole model; give it to --checkpoint")
    wanted = find_base(folder)
    for name, source in sources.items():
        if fingerprint(source.folder) == wanted.fingerprint:
            return name
    raise ConfigError(
        f"--adapter {given}: trained with the model {wanted.folder}, which no --checkpoint gives"
    )


def read_keys(flag: str | None, file: Path | None) -> tuple[str, ...]:
    """Gives the API keys of the flag, of the environment and of the file's lines."""
    keys = [key for key in (flag, os.environ.get(KEY_VARIABLE)) if key]
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--api_key_file {file}: cannot be read: {error}") from None
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise ConfigError(f"--api_key_file {file}: no key in it; write one a line")
        keys += found
    return tuple(keys)


def _build_parser() -> VerbParser:
    parser = VerbParser(
        description="Serves checkpoints with OpenAI's API.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    models = parser.add_argument_group("what to serve")
    models.add_argument(
        "--checkpoint",
        action="append",
        required=True,
        metavar="[NAME=]FOLDER",
        help="a run's folder, one checkpoint in it, or a Hugging Face folder; several for a choice",
    )
    models.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="an adapter over one of them, served under its own name without a copy of the model",
    )
    add_dtype_flag(models)
    models.add_argument("--max_batch", type=int, default=16, help="sequences decoded together")
    models.add_argument(
        "--max_tokens",
        type=int,
        default=1 << 16,
        help="tokens of the cache, for all sequences",
    )
    access = parser.add_argument_group("who may use it")
    access.add_argument("--host", default="127.0.0.1", help="address to listen on")
    access.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    access.add_argument("--api_key", help="other users of this machine can see it: prefer the file")
    access.add_argument(
        "--api_key_file", type=Path, help=f"one key a line; {KEY_VARIABLE} counts too"
    )
    access.add_argument(
        "--allow_no_key", action="store_true", help="listen beyond this machine without a key"
    )
    access.add_argument(
        "--cors_origin",
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="web pages of this origin may call the server, as http://localhost:3000; several; *: "
        "all pages",
    )
    access.add_argument(
        "--allowed_host",
        action="append",
        default=[],
        metavar="NAME",
        help="a domain by which a server without a key may be called, besides addresses and names "
        "without a dot; several",
    )
    prompts = parser.add_argument_group("prompts")
    prompts.add_argument(
        "--parse_special",
        action="store_true",
        help="special tokens that prompts of /v1/completions spell are tokens, for clients that "
        "send rendered chat templates; else where a request says parse_special",
    )
    limits = parser.add_argument_group("limits")
    for field in dataclasses.fields(ServerSettings):
        if field.name in NUMBERS:
            limits.add_argument(
                f"--{field.name}",
                type=type(field.default),
                default=field.default,
                help=NUMBERS[field.name],
                metavar="N",
            )
    limits.add_argument("--log_prompts", action="store_true", help="write prompts into the log too")
    return parser
