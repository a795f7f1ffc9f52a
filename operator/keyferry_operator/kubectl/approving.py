"""The question that a person is to answer for an identity of the cluster."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from keyferry.cli.exits import CommandError, ExitCode
from keyferry.engine.job import ASKABLE
from keyferry.spec.durations import format_duration
from keyferry.spec.grant import GrantType
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
LONG_TOLD: Final = 10.0
"""Seconds after which what the status says is believed to be of this request, though it said so before."""


class Approving:
    """One identity that waits for a person, or is to be approved anew."""

    def __init__(self, api: Api, namespace: str, home: str, name: str) -> None:
        self._api = api
        self._namespace = namespace
        self._home = home
        self._name = name
        self.key: Final = f"{namespace}/{name}"

    def question(self, patience: float) -> Prompt | None:
        """Return what the person is asked; asks for a question where none is open. Raises CommandError.

        None: there was no need to ask, since a new one-hour code lay in the identity's Secret and was redeemed.
        """
        body = self._body()
        status = status_of(body)
        if status.grant not in ASKABLE:
            raise CommandError(f"{self.key} needs no login: its grant is {status.grant}", ExitCode.INVALID)
        before, wanted = status, ""
        if status.prompt is None:
            wanted = request(self._api, body, Request.LOGIN)
        began = time.monotonic()
        deadline = began + patience
        while status.prompt is None:
            if (body.get("status") or {}).get(Request.LOGIN.field) == wanted:
                # What an earlier question came to stands in the status until this one is asked.
                told = status.unapproved != before.unapproved or time.monotonic() - began > LONG_TOLD
                if told and status.unapproved and status.ready(self._api.now()):
                    raise CommandError(f"{self.key}: {status.login_failure}", ExitCode.PERSON)
                if status.grant == GrantType.LABARCHIVES_CODE and status.revision > before.revision:
                    return None
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
