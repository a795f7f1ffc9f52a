"""The issuer of `keyferry demo`: a real authorization server on 127.0.0.1, with short lifetimes and strict rotation.

It is for trying Keyferry out. It speaks plain HTTP, so it listens on the loopback alone, and its clients, secrets
and tokens are made at random when it starts and forgotten when it ends.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, replace
from typing import Final

from aiohttp import web

from keyferry.demo.clients import AuthMethod, Client, Grant
from keyferry.demo.endpoints import Endpoints
from keyferry.demo.refresh_tokens import RefreshPolicy, Rotation
from keyferry.demo.state import Settings, User
from keyferry.demo.token_service import TokenService
from keyferry.demo.wire import Answer, HttpRequest
from keyferry.secret import SecretValue

HOST: Final = "127.0.0.1"
PERSON: Final = "ada"
_MAX_BODY: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class DemoAccount:
    """What a person would have been given to set up one identity: fields that its grant does not need are ``None``."""

    name: str
    grant: Grant
    client_id: str
    client_secret: SecretValue
    authentication: AuthMethod
    scopes: tuple[str, ...]
    refresh_token: SecretValue | None = None
    username: str | None = None
    password: SecretValue | None = None


class DemoIssuer:
    """A running demo issuer; `start_demo_issuer` makes one.

    ``url`` is where it listens and ``issuer`` its identifier. ``accounts`` are four, one for each of client
    credentials, refresh token, password and device code. ``service`` tells what was issued and spent.
    """

    def __init__(self, service: TokenService, accounts: tuple[DemoAccount, ...], runner: web.AppRunner) -> None:
        self.service = service
        self.accounts = accounts
        self._runner = runner

    @property
    def url(self) -> str:
        """The base URL, without a slash at the end."""
        return self.service.issuer

    @property
    def issuer(self) -> str:
        """The issuer identifier (RFC 8414 2)."""
        return self.service.issuer

    async def close(self) -> None:
        """Stop listening; a second call does nothing."""
        await self._runner.cleanup()


async def start_demo_issuer(*, access_lifetime: float = 6.0, port: int = 0) -> DemoIssuer:
    """Start the issuer on 127.0.0.1; port 0 lets the system choose.

    ``access_lifetime`` is in seconds. Refresh tokens rotate strictly: each is accepted once, and the reuse of a spent
    one revokes all of its family (RFC 9700 4.14.2). Raises ``OSError`` where the port is taken.
    """
    service = TokenService(
        settings=Settings(access_lifetime=access_lifetime),
        refresh_policy=RefreshPolicy(rotation=Rotation.ROTATING),
    )
    application = web.Application(client_max_size=_MAX_BODY)
    shell = _Shell()
    application.router.add_route("*", "/{path:.*}", shell.handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, port).start()
    except OSError:
        await runner.cleanup()
        raise
    # The identifier holds the port, which is known only now; nobody can have asked yet who knows the port.
    service.issuer = f"http://{HOST}:{runner.addresses[0][1]}"
    shell.endpoints = Endpoints(service)
    return DemoIssuer(service, _register_accounts(service), runner)


class _Shell:
    """Carries requests from aiohttp to the endpoints and answers back."""

    endpoints: Endpoints | None = None

    async def handle(self, request: web.Request) -> web.Response:
        if self.endpoints is None:
            return _response(Answer(503, {"error": "temporarily_unavailable"}))
        return _response(
            self.endpoints.answer(
                HttpRequest(
                    method=request.method,
                    path=request.path,
                    body=await request.read(),
                    content_type=request.headers.get("Content-Type", ""),
                    authorization=request.headers.get("Authorization"),
                )
            )
        )


def _response(answer: Answer) -> web.Response:
    if answer.payload is None:
        return web.Response(status=answer.status, headers=answer.headers)
    body = json.dumps(answer.payload)
    return web.Response(status=answer.status, headers=answer.headers, text=body, content_type="application/json")


def _register_accounts(service: TokenService) -> tuple[DemoAccount, ...]:
    """Register four clients, each authenticating and being granted in another way."""
    reporter = _account("nightly-report", Grant.CLIENT_CREDENTIALS, AuthMethod.BASIC, ("report:read",))
    service.clients.add(_client(reporter, Grant.CLIENT_CREDENTIALS))

    ingest = _account("ingest", Grant.REFRESH_TOKEN, AuthMethod.POST, ("data:read", "data:write"))
    service.clients.add(_client(ingest, Grant.REFRESH_TOKEN))
    seed = service.seed_refresh_token(ingest.client_id, PERSON)

    archive = _account("archive", Grant.PASSWORD, AuthMethod.BASIC, ("archive:read",))
    service.clients.add(_client(archive, Grant.PASSWORD, Grant.REFRESH_TOKEN))
    password = secrets.token_urlsafe(16)
    service.add_user(User(PERSON, password, email=f"{PERSON}@example.org"))

    analysis = _account("analysis", Grant.DEVICE_CODE, AuthMethod.BASIC, ("data:read",))
    service.clients.add(_client(analysis, Grant.DEVICE_CODE, Grant.REFRESH_TOKEN))
    service.device_codes.interval = 1.0

    return (
        reporter,
        replace(ingest, refresh_token=SecretValue(seed)),
        replace(archive, username=PERSON, password=SecretValue(password)),
        analysis,
    )


def _account(name: str, grant: Grant, authentication: AuthMethod, scopes: tuple[str, ...]) -> DemoAccount:
    return DemoAccount(name, grant, name, SecretValue(secrets.token_urlsafe(24)), authentication, scopes)


def _client(account: DemoAccount, *grants: Grant) -> Client:
    return Client(
        account.client_id,
        secrets=(account.client_secret.reveal(),),
        methods=(account.authentication,),
        grants=grants,
        scopes=account.scopes,
    )
