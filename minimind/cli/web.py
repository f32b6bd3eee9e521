"""Serves a web page to chat with a server: `minimind web --server http://127.0.0.1:8000`."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from minimind.cli.verb_parser import VerbParser
from minimind.config.environment import KEY_VARIABLE, SERVER_VARIABLE

PAGE = Path(__file__).parents[1] / "chat" / "web_page.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Becomes the web page's process; returns an exit status only where that is not possible."""
    parser = VerbParser(
        description="Opens a web page to chat with a running `minimind serve`.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--server",
        default="http://127.0.0.1:8000",
        metavar="URL",
        help=f"where `minimind serve` listens; its key from {KEY_VARIABLE}",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; who can open the page can use the server without its key",
    )
    parser.add_argument("--port", type=int, default=8501)
    arguments = parser.parse_args(argv)
    if importlib.util.find_spec("streamlit") is None:
        print("error: the web page needs Streamlit: pip install 'minimind[web]'", file=sys.stderr)
        return 2
    command = [sys.executable, "-m", "streamlit", "run", str(PAGE)]
    options = {
        "server.address": arguments.host,
        "server.port": arguments.port,
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "runner.magicEnabled": "false",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "theme.light.primaryColor": "#3b5bdb",
        "theme.dark.primaryColor": "#748ffc",
    }
    command += [f"--{name}={value}" for name, value in options.items()]
    # Streamlit takes this process's place, so that whoever stops it stops the page.
    os.execve(sys.executable, command, {**os.environ, SERVER_VARIABLE: arguments.server})
