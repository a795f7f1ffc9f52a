"""``keyferry run --page`` as a process of its own, and what it says of its identities."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from keyferry.run.control import ControlClient
from keyferry.run.status_json import decode_status
from tests.support.servers import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from keyferry.engine import IdentityStatus

PATIENCE = 300.0
GROUP = {"apiVersion": "keyferry.dev/v1alpha1"}


@dataclass
class RunningBroker:
    """A broker over the files below ``base``, whose page is at ``url``."""

    base: Path
    url: str

    @classmethod
    def prepare(cls, base: Path) -> RunningBroker:
        """Choose an address for the page."""
        return cls(base, f"http://127.0.0.1:{free_port()}")

    @contextlib.asynccontextmanager
    async def running(self, resources: list[dict[str, Any]]) -> AsyncIterator[None]:
        """Run it; at its end no address of a question may be in what it said."""
        (self.base / "resources.yaml").write_text(yaml.safe_dump_all(resources))
        options = {
            "--state": self.base / "state",
            "--out": self.base / "out",
            "--page": self.url.removeprefix("http://"),
        }
        arguments = [str(text) for option in options.items() for text in option]
        arguments += ["--allow-host", "127.0.0.1", "--allow-host", "localhost"]
        command = [sys.executable, "-m", "keyferry", "run", str(self.base / "resources.yaml"), *arguments]
        with (self.base / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
            try:
                async with asyncio.timeout(PATIENCE):
                    while not self._is_up():
                        assert process.returncode is None
                        await asyncio.sleep(0.1)
                yield
                process.terminate()
                await asyncio.wait_for(process.wait(), PATIENCE)
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        assert "/approve/" not in self.log()

    def log(self) -> str:
        return (self.base / "log").read_text()

    def _is_up(self) -> bool:
        return (self.base / "state" / "control.sock").exists()

    async def status(self, name: str) -> IdentityStatus:
        """Ask the broker, as ``keyferry status`` does."""

        def ask() -> list[dict[str, Any]]:
            with ControlClient(self.base / "state", patience=PATIENCE) as client:
                found: list[dict[str, Any]] = client.statuses()["identities"]
                return found

        return next(decode_status(each) for each in await asyncio.to_thread(ask) if each["name"] == name)

    async def link(self, name: str) -> str:
        """Return the address of an identity's question; while it has one, it waits for a person."""
        async with asyncio.timeout(PATIENCE):
            while True:
                status = await self.status(name)
                if status.prompt is not None and status.prompt.page:
                    assert not status.ready(time.time())
                    return status.prompt.page
                await asyncio.sleep(0.5)

    async def ready(self, name: str) -> IdentityStatus:
        """Wait until the identity is ready; return its status."""
        async with asyncio.timeout(PATIENCE):
            while True:
                status = await self.status(name)
                if status.ready(time.time()):
                    return status
                await asyncio.sleep(0.5)

    def token(self, name: str) -> str:
        """Return what is published; nothing where nothing is."""
        path = self.base / "out" / "default" / name / "token"
        return path.read_text() if path.exists() else ""
