"""Answers in the escrow of a process that was killed: committed as soon as its replica is back.

That needs no Lease. The private state takes an answer only while the claim that it belongs to is open, so it does not
matter who leads by now; but whoever does takes the answer for lost after a while, and a refresh token with it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from keyferry.escrow import Escrow

log = logging.getLogger(__name__)


async def rescue(escrow: Escrow, commit: Callable[[Collection[str]], Awaitable[Collection[str]]]) -> None:
    """Commit what lies in the escrow and is still wanted, and forget the rest; to be done before any work.

    ``commit`` is given the attempts that have an answer, and returns those of them whose claims are open, whether it
    could commit them or not; it is not called where there is no answer. Raises StoreError.
    """
    answers = set()
    for attempt_id in await escrow.attempts():
        if await escrow.recall(attempt_id) is None:
            await escrow.release(attempt_id)  # only its space was set aside
        else:
            answers.add(attempt_id)
    if not answers:
        return
    log.info("answers that arrived before the restart: %d; committing those that are still wanted", len(answers))
    for attempt_id in answers.difference(await commit(answers)):
        await escrow.release(attempt_id)
