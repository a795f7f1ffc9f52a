"""What the same work costs a program that does nothing else, so that a figure can be judged on any machine.

``post URL NUMBER`` asks for so many tokens, ``write DIRECTORY NUMBER`` writes the files of so many identities, each
with a temporary file, fsync and rename. Both print how many a second.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp

from bench.world import CLIENT_ID, CLIENT_SECRET, CONCURRENCY

THREADS = 16
SIZES = {"state": 1000, "token": 43, "token.json": 240, ".keyferry.json": 800}
"""Bytes of each file, as the broker writes them for a client-credentials identity with an opaque token."""


async def post(url: str, number: int) -> None:
    """Ask for ``number`` tokens as fast as they come, over as many connections as the broker may use."""
    numbers = iter(range(number))
    credentials = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
    async with aiohttp.ClientSession(headers={"Authorization": f"Basic {credentials}"}) as session:

        async def work() -> None:
            for index in numbers:
                form = {"grant_type": "client_credentials", "audience": f"plain-{index}"}
                async with session.post(url, data=form) as response:
                    assert json.loads(await response.read())["access_token"]

        await asyncio.gather(*(work() for _ in range(CONCURRENCY)))


def write(base: Path, number: int) -> None:
    """Write what the broker writes at a first issue: a record of the private state, two token files, their record."""
    state = base / "state"
    state.mkdir(parents=True)

    def one(index: int) -> None:
        place = base / f"job-{index:05}"
        place.mkdir()
        _write(state, f"{index}.json", SIZES["state"])
        _sync(state)
        for name in ("token", "token.json", ".keyferry.json"):
            _write(place, name, SIZES[name])
        _sync(place)

    with ThreadPoolExecutor(THREADS) as threads:
        for _ in threads.map(one, range(number)):
            pass


def _write(directory: Path, name: str, size: int) -> None:
    temporary = f"{directory}/.tmp-{name}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(descriptor, b"x" * size)
    os.fsync(descriptor)
    os.close(descriptor)
    os.rename(temporary, f"{directory}/{name}")  # noqa: PTH104 - as plain as can be


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(descriptor)
    os.close(descriptor)


def main() -> None:
    """Print the rate."""
    kind, where, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
    begun = time.monotonic()
    if kind == "post":
        asyncio.run(post(where, number))
    else:
        write(Path(where), number)
    print(number / (time.monotonic() - begun))


if __name__ == "__main__":
    main()
