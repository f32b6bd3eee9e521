"""Chats with a model in the terminal: `minimind chat --checkpoint RUN`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from minimind.chat.local import LocalChat
from minimind.chat.session import ChatBackend, ChatOptions, ChatSession
from minimind.chat.terminal import HELP, Terminal, read_lines
from minimind.cli.verb_parser import VerbParser
from minimind.config.environment import KEY_VARIABLE
from minimind.inference.load import add_dtype_flag, chat_notice, choose_placement, load_checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _build_parser().parse_args(argv)
    options = ChatOptions(thinking=arguments.thinking)
    for assignment in arguments.set:
        options = options.change(assignment)
    backend, notice = open_backend(arguments)
    if notice:
        print(f"note: {notice}", file=sys.stderr)
    terminal = Terminal(ChatSession(backend, options, system=arguments.system))
    if arguments.ask:
        terminal.show_answers(arguments.ask)
        return int(terminal.has_failed)
    for line in read_lines(terminal.is_interactive):
        if not terminal.take(line):
            break
    return 1 if terminal.has_failed and not terminal.is_interactive else 0


def open_backend(arguments: argparse.Namespace) -> tuple[ChatBackend, str | None]:
    """Loads the model of --checkpoint into this process, or connects to --server. Gives with it
    what the user should know of the model, if anything."""
    if arguments.server:
        from minimind.chat.server import ServerChat

        chat = ServerChat(arguments.server, arguments.model, os.environ.get(KEY_VARIABLE))
        return chat, chat.notice
    placement = choose_placement(dtype=arguments.dtype)
    local = LocalChat(*load_checkpoint(arguments.checkpoint, placement))
    return local, chat_notice(arguments.checkpoint)


def _build_parser() -> VerbParser:
    parser = VerbParser(
        description="Talks with a model in the terminal.",
        epilog=f"In the chat:\n{HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FOLDER",
        help="a run's folder, one checkpoint in it, or a Hugging Face folder",
    )
    source.add_argument(
        "--server", metavar="URL", help=f"a running server instead; its key from {KEY_VARIABLE}"
    )
    add_dtype_flag(parser)
    parser.add_argument("--model", help="of the server (default: its first)")
    parser.add_argument("--system", default="", metavar="TEXT", help="the system prompt")
    parser.add_argument("--thinking", action="store_true", help="think before answering")
    parser.add_argument(
        "--ask",
        nargs="+",
        default=[],
        metavar="TEXT",
        help="show the answers to these, one after the other in one conversation, and end",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option, as /set in the chat: "
        + ", ".join(f"{k}={v}" for k, v in ChatOptions().show().items()),
    )
    return parser
