"""What is said of tasks of kopf's that fail while nobody waits for them."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING

import pytest

from keyferry_operator.errors import ApiError
from keyferry_operator.watch import GONE, NEVER_ASKED, report_all_but_expiry

if TYPE_CHECKING:
    from collections.abc import Callable


def fail_unasked(error: Exception) -> None:
    async def work() -> None:
        asyncio.get_running_loop().set_exception_handler(report_all_but_expiry)
        task = asyncio.ensure_future(_fail(error))
        await asyncio.wait({task})

    asyncio.run(work())
    gc.collect()


async def _fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        pytest.param(lambda: ApiError("expired", status=GONE), False, id="a watch that expired"),
        pytest.param(lambda: ApiError("no", status=403), True, id="another answer"),
        pytest.param(lambda: ValueError("a defect"), True, id="a defect"),
    ],
)
def test_all_is_said_but_that_a_watch_expired(
    failure: Callable[[], Exception], caplog: pytest.LogCaptureFixture, *, told: bool
) -> None:
    fail_unasked(failure())
    assert (NEVER_ASKED in caplog.text) == told
