"""The question that a person is to answer for an identity of the cluster."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from keyferry.cli.exits import CommandError, ExitCode
from keyferry.engine.job import PERSONAL
from keyferry.spec.durations import format_duration
from keyferry_operator.client import IDENTITIES
from keyferry_operator.kubectl.liveness import operator_trouble
from keyferry_operator.kubectl.renewing import request
from keyferry_operator.kubectl.statuses import status_of
from keyferry_operator.names import Request

if TYPE_CHECKING:
    from keyferry.engine import IdentityStatus
    from keyferry.engine.status import Prompt
    from keyferry_operator.client import Object
    from keyferry_operator.kubectl.api import Api

POLL: Final = 0.5


class Approving:
    """One identity that waits for a person, or is to be approved anew."""

    def __init__(self, api: Api, namespace: str, home: str, name: str) -> None:
        self._api = api
        self._namespace = namespace
        self._home = home
        self._name = name
        self.key: Final = f"{namespace}/{name}"

    def question(self, patience: float) -> Prompt:
        """Return what the person is asked; asks for a question where none is open. Raises CommandError."""
        body = self._body()
        status = status_of(body)
        if status.grant not in PERSONAL:
            raise CommandError(f"{self.key} needs no login: its grant is {status.grant}", ExitCode.INVALID)
        if status.prompt is None:
            request(self._api, body, Request.LOGIN)
        deadline = time.monotonic() + patience
        while status.prompt is None:
            if time.monotonic() >= deadline:
                trouble = operator_trouble(self._api, self._home, [body], [status]) or status.message
                raise CommandError(f"{self.key}: {trouble} (waited {format_duration(patience)})")
            time.sleep(POLL)
            body = self._body()
            status = status_of(body)
        return status.prompt

    def look(self) -> IdentityStatus:
        """Return how the identity is now. Raises CommandError where it is gone."""
        return status_of(self._body())

    def _body(self) -> Object:
        body = self._api.get(IDENTITIES, self._namespace, self._name)
        if body is None:
            raise CommandError(f"there is no ServiceIdentity {self.key}", ExitCode.INVALID)
        return body
