"""The administration of a `FaultIssuer` in another process: JSON over HTTP under `/_admin/`.

Each command is a POST to its name with a JSON object (or nothing) as the body, and is answered by JSON.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from keyferry.demo.clients import Client
from keyferry.demo.device_codes import Decision
from keyferry.demo.refresh_tokens import RefreshPolicy, Spend
from keyferry.demo.signing import TrustedIssuer
from keyferry.demo.state import IssuedToken, Settings, User
from keyferry.demo.wire import Answer
from tests.support.faults import Fault
from tests.support.issuer import ADMIN, FaultIssuer, send

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.http1 import Connection, Received

CLIENT = TypeAdapter(Client)
USER = TypeAdapter(User)
TRUSTED_ISSUER = TypeAdapter(TrustedIssuer)
SETTINGS = TypeAdapter(Settings)
POLICY = TypeAdapter(RefreshPolicy)
SPENDS = TypeAdapter(list[Spend])
ISSUED = TypeAdapter(list[IssuedToken])


class Admin:
    """Carries out administrative requests; assign its `handle` to `FaultIssuer.admin`."""

    def __init__(self, issuer: FaultIssuer, save: Callable[[], None]) -> None:
        self._issuer = issuer
        self._tasks: set[asyncio.Task[None]] = set()
        self._reads: dict[str, Callable[[], object]] = {
            "spends": lambda: SPENDS.dump_python(issuer.spends, mode="json"),
            "sent": issuer.sent_refresh_tokens,
            "issued": lambda: ISSUED.dump_python(list(issuer.issued), mode="json"),
            "requests": lambda: [dataclasses.asdict(record) for record in issuer.requests],
            "faults": issuer.faults.listing,
            "settings": lambda: SETTINGS.dump_python(issuer.service.settings, mode="json"),
        }
        self._writes: dict[str, Callable[[dict[str, Any]], object]] = {
            "faults/add": lambda body: issuer.faults.add(Fault.from_json(body)),
            "faults/remove": lambda body: issuer.faults.remove(body["number"]),
            "faults/clear": lambda _: issuer.faults.clear(),
            "requests/clear": lambda _: issuer.requests.clear(),
            "settings": self._settings,
            "policy": self._policy,
            "clients": lambda body: issuer.clients.add(CLIENT.validate_python(body)).client_id,
            "users": lambda body: issuer.service.add_user(USER.validate_python(body)).name,
            "trust": lambda body: issuer.service.trust(TRUSTED_ISSUER.validate_python(body)),
            "seed": lambda body: issuer.seed_refresh_token(body["client"], body["subject"]),
            "revoke": lambda body: issuer.revoke_family(body["refresh_token"]),
            "decide": lambda body: issuer.service.device_codes.decide(
                body["user_code"], Decision[body["decision"]], body["subject"]
            ),
            "pause": lambda _: issuer.pause(),
            "resume": lambda _: issuer.resume(),
            "save": lambda _: save(),
        }

    def handle(self, received: Received, connection: Connection) -> None:
        """Answer one administrative request."""
        name = received.path.removeprefix(ADMIN)
        try:
            body = json.loads(received.body or b"{}")
            if name == "stop" and received.method == "POST":
                self._issuer.stop(drop=body.get("drop", True), spare=connection)
                result: object = None
            elif name == "start" and received.method == "POST":
                self._start(connection)
                return
            else:
                result = self._reads[name]() if received.method == "GET" else self._writes[name](body)
        except (KeyError, TypeError, ValueError, ValidationError) as error:
            answer = Answer(400, {"detail": f"{type(error).__name__}: {error}"})
        else:
            answer = Answer(200, {"result": result})
        send(connection, answer)
        connection.finish()

    def _start(self, connection: Connection) -> None:
        async def start() -> None:
            await self._issuer.start()
            send(connection, Answer(200, {"result": None}))
            connection.finish()

        task = asyncio.get_running_loop().create_task(start())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _settings(self, body: dict[str, Any]) -> None:
        service = self._issuer.service
        service.settings = SETTINGS.validate_python({**dataclasses.asdict(service.settings), **body})

    def _policy(self, body: dict[str, Any]) -> None:
        tokens = self._issuer.service.refresh_tokens
        tokens.policy = POLICY.validate_python({**dataclasses.asdict(tokens.policy), **body})
