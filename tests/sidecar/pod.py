"""A pod's view of a broker: the directory, the pod's own token, the client, and the program as a process of its own."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from keyferry.secret import SecretValue
from keyferry.sidecar.client import BrokerClient
from keyferry.sidecar.files import PodFiles
from keyferry.sidecar.follow import Follower, Pod
from keyferry.sidecar.status import Board
from tests.support.fake_broker import NAMESPACE, POD_TOKEN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

PATIENCE = 180.0
PLACEHOLDER = SecretValue("p" * 43)


async def until(done: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, f"waited {PATIENCE:.0f} s in vain: {what}"
        await asyncio.sleep(0.01)


@dataclass
class PodPlace:
    """``url``, ``bundle`` and the like are what the webhook would tell the sidecar."""

    base: Path
    url: str
    bundle: str
    namespace: str = NAMESPACE
    credential: str = POD_TOKEN
    lines: list[str] = field(default_factory=list)
    """The log of followers in this process."""
    clients: list[BrokerClient] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.authorities, self.token = self.base / "ca.crt", self.base / "pod-token"
        self.authorities.write_text(self.bundle)
        self.token.write_text(self.credential + "\n")
        self.directory = self.base / "files"

    def client(self) -> BrokerClient:
        """Return a client, which is closed at the end of the test."""
        client = BrokerClient(self.url, self.authorities, self.token, self.namespace)
        self.clients.append(client)
        return client

    def follower(self, name: str = "nightly", *, fallback: Path | None = None, **settings: Any) -> Follower:
        """Return a follower of one identity, in this process."""
        files = PodFiles(self.directory)
        placeholder = files.prepare()
        minimum = settings.pop("minimum", 0.0)
        board = Board(files, [name], minimum, tell=self.lines.append)
        defaults: dict[str, Any] = {"endpoint": "", "spread": 0.05, "rng": random.Random(1)}  # noqa: S311 - jitter
        pod = Pod(self.client(), board, placeholder, minimum=minimum, **(defaults | settings))
        return Follower(name, pod, files.of(name, board.standings[name].files), fallback)

    def read(self, path: str = "nightly/token") -> str:
        file = self.directory / path
        return file.read_text() if file.exists() else ""

    def command(self, *arguments: str, names: tuple[str, ...] = ("nightly",)) -> list[str]:
        where = ["--broker", self.url, "--ca", str(self.authorities), "--token", str(self.token)]
        own = ["--namespace", self.namespace, "--dir", str(self.directory)]
        return [sys.executable, "-m", "keyferry", "sidecar", *where, *own, *arguments, *names]

    @asynccontextmanager
    async def running(
        self, *arguments: str, names: tuple[str, ...] = ("nightly",)
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        """Run the program for the length of the block, and end it as a kubelet does; its log goes to `log`."""
        with self.log_path.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *self.command(*arguments, names=names), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            yield process
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
                assert await asyncio.wait_for(process.wait(), PATIENCE) == 0, self.log
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    @property
    def log_path(self) -> Path:
        return self.base / "log"

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    async def check(self) -> tuple[int, str]:
        """Ask the probe; return its code and what it says."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "keyferry", "sidecar", "--check", "--dir", str(self.directory)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
        assert process.returncode is not None
        return process.returncode, output.decode()
