from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.sidecar.contract import ask_everything

if TYPE_CHECKING:
    from tests.sidecar.pod import PodPlace
    from tests.support.fake_broker import FakeBroker


async def test_the_broker_of_the_tests_keeps_the_contract(broker: FakeBroker, pod: PodPlace) -> None:
    broker.publish("nightly")

    async def renew() -> None:
        await asyncio.sleep(0)
        broker.publish("nightly")

    await ask_everything(pod, renew, lambda: len(broker.held))
