"""Makes two hosts of one machine: network namespaces joined by a pair of virtual interfaces, each
with process ids and a name of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from training_runs import LAUNCHER_VARIABLES, ROOT

_NETWORK = "10.213.77"


class TwoHosts:
    """Holds the hosts 0 and 1, whose addresses are in `addresses`."""

    def __init__(self) -> None:
        self._names = [f"minimind-{secrets.token_hex(3)}-{host}" for host in range(2)]
        self._links = [f"mm{secrets.token_hex(4)}" for _ in range(2)]
        self.addresses = [f"{_NETWORK}.{host + 1}" for host in range(2)]

    def make(self) -> None:
        """Makes the hosts. Skips the test where this process may not."""
        if not shutil.which("ip") or os.geteuid() != 0:
            pytest.skip("hosts of one machine need root and iproute2's `ip`")
        try:
            for name in self._names:
                _run("ip", "netns", "add", name)
            _run("ip", "link", "add", self._links[0], "type", "veth", "peer", self._links[1])
        except subprocess.CalledProcessError as error:
            self.remove()
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        for name, link, address in zip(self._names, self._links, self.addresses, strict=True):
            _run("ip", "link", "set", link, "netns", name)
            inside = ["ip", "-n", name]
            _run(*inside, "address", "add", f"{address}/24", "dev", link)
            for interface in (link, "lo"):
                _run(*inside, "link", "set", interface, "up")

    def remove(self) -> None:
        for name in self._names:
            with contextlib.suppress(subprocess.CalledProcessError):
                _run("ip", "netns", "delete", name)

    def start(self, host: int, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """Starts a command on a host, in a process group of its own; its output goes to `log`."""
        environment = {k: v for k, v in os.environ.items() if k not in LAUNCHER_VARIABLES}
        environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        environment |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
        own = ["ip", "netns", "exec", self._names[host], "unshare", "--uts", "--pid", "--fork"]
        own += ["--kill-child", "--mount-proc"]
        named = ["sh", "-c", f'hostname host{host}; exec "$@"', "sh", *command]
        with open(log, "wb") as file:
            return subprocess.Popen(
                [*own, *named],
                env=environment,
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def cut(self) -> None:
        """Takes the link between the hosts away: what they send is lost without an answer."""
        _run("ip", "-n", self._names[0], "link", "set", self._links[0], "down")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
