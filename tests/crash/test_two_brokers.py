"""One state directory serves one broker at a time."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from keyferry.io.state_dir import StateDir, StateHeld, holder_of
from keyferry.run.broker import LocalBroker
from tests.crash.files import FileScene
from tests.crash.scene import Identity, Kind, unique
from tests.crash.worker import Order
from tests.support.issuer import FaultIssuer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.crash.zygote import Zygote

pytestmark = pytest.mark.crash


async def test_the_second_refuses_and_a_killed_holder_is_succeeded_at_once(tmp_path: Path, zygote: Zygote) -> None:
    async with FaultIssuer() as issuer:
        identity = Identity(unique("two"), Kind.REFRESH, issuer)
        scene = FileScene(tmp_path / "two", zygote, [identity])
        first = scene.start()
        await scene.renewed(identity)
        state = scene.base / "state"
        with pytest.raises(StateHeld, match=f"pid {first.pid}") as caught:
            async with LocalBroker(Order(str(scene.base)).settings):
                raise AssertionError("two brokers work on one state")
        assert "does nothing" in caught.value.message
        assert caught.value.path == state
        # A process of its own gets no further, and the first does not notice.
        second = zygote.run(Order(str(scene.base)))
        assert await second.ended() == 1
        await scene.renewed(identity)
        assert holder_of(state) is not None

        first.kill()
        assert await first.ended() == -signal.SIGKILL
        assert holder_of(state) is None
        StateDir.open(state).close()
        scene.start()
        await scene.renewed(identity)
        await scene.finish()
        assert not scene.verdict().faults
