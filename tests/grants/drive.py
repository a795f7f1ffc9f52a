"""Drives a generator by hand: looks at what it yields, sends it what a provider would answer."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl

import pytest

from keyferry.client_auth import ClientSecretBasic
from keyferry.grants.inputs import GrantInputs
from keyferry.model import HttpRequest, HttpResponse
from keyferry.secret import SecretValue

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    import httpx

T = TypeVar("T")
NOW = 1_800_000_000.0
ENDPOINT = "https://auth.example.org/token"
ISSUER = "https://auth.example.org"


def inputs(**changes: Any) -> GrantInputs:
    settings: dict[str, Any] = {
        "token_endpoint": ENDPOINT,
        "issuer": ISSUER,
        "client": ClientSecretBasic("bot", SecretValue("hush")),
        "started_at": NOW,
        "scopes": ("read", "write"),
    }
    return GrantInputs(**(settings | changes))


def answer(document: object, status: int = 200, **headers: str) -> HttpResponse:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return HttpResponse(status, {"content-type": "application/json"} | names, json.dumps(document).encode())


def page(status: int) -> HttpResponse:
    return HttpResponse(status, {"content-type": "text/html; charset=utf-8"}, b"<!doctype html><h1>Sorry</h1>")


def finish(generator: Generator[HttpRequest, HttpResponse, T], *answers: HttpResponse) -> T:
    """Return what the generator returns once it was sent all the answers; it must not ask for more."""
    next(generator)
    for given in answers[:-1]:
        generator.send(given)
    with pytest.raises(StopIteration) as stopped:
        generator.send(answers[-1])
    value: T = stopped.value.value
    return value


def form_of(request: HttpRequest) -> list[tuple[str, str]]:
    return parse_qsl(request.body.decode(), keep_blank_values=True, strict_parsing=True)


def jwt_of(claims: Mapping[str, object]) -> str:
    """Return an unsigned look-alike of a JWT."""

    def part(document: Mapping[str, object]) -> str:
        return base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'RS256'})}.{part(claims)}.c2lnbmF0dXJl"


def over_http(generator: Generator[HttpRequest, HttpResponse, T], client: httpx.Client) -> T:
    """Run the generator against real servers."""
    try:
        request = next(generator)
        while True:
            got = client.request(request.method, request.url, headers=dict(request.headers), content=request.body)
            request = generator.send(HttpResponse(got.status_code, dict(got.headers), got.content))
    except StopIteration as stopped:
        value: T = stopped.value
        return value
