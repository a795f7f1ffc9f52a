"""The sidecar at work. The one place where its parts are put together."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final

from keyferry.errors import KeyferryError
from keyferry.io.tls import use_small_buffers
from keyferry.sidecar.client import BrokerClient
from keyferry.sidecar.files import PodFiles
from keyferry.sidecar.follow import Follower, Pod
from keyferry.sidecar.status import Board

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Never

    from keyferry.sidecar.settings import SidecarSettings

LOOPBACK: Final = "http://127.0.0.1"
LOOK: Final = 0.5
"""Seconds between looks at files that a client may delete; a look costs some 100 µs."""
NOTHING_YET: Final = 5.0
"""Seconds after which to see whether there are such files by now."""


async def serve(settings: SidecarSettings) -> Never:
    """Work until the process ends. Raises KeyferryError where the directory or the port cannot be had."""
    use_small_buffers()
    files = PodFiles(settings.directory)
    placeholder = files.prepare()
    board = Board(files, settings.names, settings.minimum)
    board.serving = not settings.endpoints
    board.save()
    client = BrokerClient(settings.broker, settings.authorities, settings.token, settings.namespace)
    endpoint = f"{LOOPBACK}:{settings.port}" if settings.endpoints else ""
    rng = random.SystemRandom()
    pod = Pod(client, board, placeholder, endpoint, settings.minimum, settings.spread, rng)
    followers = [
        Follower(name, pod, files.of(name, board.standings[name].files), settings.fallbacks.get(name))
        for name in settings.names
    ]
    failure: Exception | None = None
    try:
        async with asyncio.TaskGroup() as tasks:
            for follower in followers:
                tasks.create_task(follower.run(), name=follower.name)
            tasks.create_task(_keep_there(followers), name="put-back")
            if settings.endpoints:
                await _answer(followers, pod, settings)
    except* KeyferryError as group:
        failure = group.exceptions[0]
    raise failure or AssertionError("followers never end")


async def _keep_there(followers: Sequence[Follower]) -> Never:
    """Put back what clients delete: Tiled's does when it gives up on a token, and works on once there is a new one."""
    while True:
        deletable = [follower for follower in followers if follower.may_go_missing]
        for follower in deletable:
            follower.put_back()
        await asyncio.sleep(LOOK if deletable else NOTHING_YET)


async def _answer(followers: Sequence[Follower], pod: Pod, settings: SidecarSettings) -> Never:
    """Serve the loopback endpoints."""
    # The files come first: the web server takes longer to import than they take to come.
    await asyncio.gather(*(follower.tried.wait() for follower in followers))
    from keyferry.io.addresses import AddressPolicy, HostRule  # noqa: PLC0415 - only where it is wanted
    from keyferry.sidecar.source import BrokerSource  # noqa: PLC0415
    from keyferry.web.loopback import Loopback  # noqa: PLC0415

    sources = {each.name: BrokerSource(each, pod.client, pod.placeholder) for each in followers}
    try:
        policy = AddressPolicy(allowed=tuple(HostRule.parse(text) for text in settings.allowed_hosts))
    except ValueError as error:
        raise KeyferryError(f"--allow-host: {error}") from None
    async with Loopback(sources.get, policy, port=settings.port):
        pod.board.serving = True
        pod.board.save()
        await asyncio.Event().wait()
    raise AssertionError("nothing ends the wait")
