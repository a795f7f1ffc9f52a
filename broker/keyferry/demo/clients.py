"""Registered clients and how each proves who it is (RFC 6749 2.3, RFC 7523 2.2, RFC 8705 2.1)."""

from __future__ import annotations

import base64
import hmac
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_plus

import jwt

from keyferry.demo.signing import TokenFormat, verify_assertion
from keyferry.demo.wire import FormRequest, OAuthError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


class Grant(StrEnum):
    """The grants, by their ``grant_type``."""

    CLIENT_CREDENTIALS = "client_credentials"
    REFRESH_TOKEN = "refresh_token"  # noqa: S105 -- the name of a grant
    AUTHORIZATION_CODE = "authorization_code"
    PASSWORD = "password"  # noqa: S105 -- the name of a grant
    JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
    DEVICE_CODE = "urn:ietf:params:oauth:grant-type:device_code"
    TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"  # noqa: S105 -- the name of a grant


class AuthMethod(StrEnum):
    """The ways to authenticate, by their names in ``token_endpoint_auth_methods_supported``."""

    BASIC = "client_secret_basic"
    POST = "client_secret_post"
    PRIVATE_KEY_JWT = "private_key_jwt"
    TLS = "tls_client_auth"
    NONE = "none"


@dataclass(slots=True)
class Client:
    """A registered client. Its fields may be changed while the issuer runs, as an administrator would.

    ``secrets``: every one is accepted, so that a rotation can overlap. ``public_keys``: PEM, for ``PRIVATE_KEY_JWT``.
    ``assertion_issuer`` and ``assertion_subject``: whose assertion stands for this client; default: its own.
    ``certificate_subject``: the common name that ``TLS`` must present. ``scopes``: what it may ask for, and gets
    where it asks for nothing. ``audiences``: what it may ask for; ``None`` means any. ``redirect_uris``: where a login
    may be sent back to, each exactly. ``token_format`` and ``access_lifetime`` (seconds) override the service's.
    """

    client_id: str
    secrets: tuple[str, ...] = field(default=(), repr=False)
    methods: tuple[AuthMethod, ...] = (AuthMethod.BASIC,)
    grants: tuple[Grant, ...] = (Grant.CLIENT_CREDENTIALS,)
    scopes: tuple[str, ...] = ()
    audiences: tuple[str, ...] | None = None
    public_keys: tuple[str, ...] = field(default=(), repr=False)
    assertion_issuer: str | None = None
    assertion_subject: str | None = None
    certificate_subject: str | None = None
    redirect_uris: tuple[str, ...] = ()
    token_format: TokenFormat | None = None
    access_lifetime: float | None = None


class Clients:
    """The registered clients by id."""

    def __init__(self, clients: Iterable[Client] = ()) -> None:
        self._clients = {client.client_id: client for client in clients}

    def add(self, client: Client) -> Client:
        """Register a client, in place of one that had the same id."""
        self._clients[client.client_id] = client
        return client

    def remove(self, client_id: str) -> None:
        """Forget a client; no error where there is none."""
        self._clients.pop(client_id, None)

    def find(self, client_id: str) -> Client | None:
        """Return the client of that id, or ``None``."""
        return self._clients.get(client_id)

    def __getitem__(self, client_id: str) -> Client:
        return self._clients[client_id]

    def __iter__(self) -> Iterator[Client]:
        return iter(self._clients.values())

    def __len__(self) -> int:
        return len(self._clients)


def basic_credentials(authorization: str) -> tuple[str, str] | None:
    """Return the id and secret of a Basic header, each form-decoded (RFC 6749 2.3.1), or ``None`` where it is none."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        client_id, colon, secret = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except ValueError:
        return None
    return (unquote_plus(client_id), unquote_plus(secret)) if colon else None


def unverified_subject(assertion: str) -> tuple[str, str, str] | None:
    """Return an assertion's issuer, subject and jti ("" where absent) without believing any; ``None`` if unreadable."""
    try:
        claims = jwt.decode(assertion, options={"verify_signature": False})
    except jwt.PyJWTError:
        return None
    return str(claims.get("iss", "")), str(claims.get("sub", "")), str(claims.get("jti", ""))


class ClientAuthenticator:
    """Tells which client sent a request; a client is held to its registered methods and to one of them at a time."""

    def __init__(self, clients: Clients, audiences: Callable[[], tuple[str, ...]], clock: Callable[[], float]) -> None:
        self._clients = clients
        self._audiences = audiences
        self._clock = clock
        self._seen: dict[tuple[str, str], float] = {}

    def authenticate(self, request: FormRequest) -> Client:
        """Return the client of a request.

        Raises ``OAuthError``: ``invalid_client`` (401), or ``invalid_request`` where two methods are used at once.
        """
        methods = _presented(request)
        if len(methods) > 1:
            raise OAuthError("invalid_request", "more than one way of client authentication is used")
        if methods == [AuthMethod.BASIC]:
            return self._basic(request)
        if methods == [AuthMethod.PRIVATE_KEY_JWT]:
            return self._assertion(request)
        if methods == [AuthMethod.POST]:
            client = self._registered(request.require("client_id"), AuthMethod.POST)
            return _with_secret(client, request.require("client_secret"), challenge=False)
        return self._by_id_alone(request)

    def _registered(self, client_id: str, method: AuthMethod, *, challenge: bool = False) -> Client:
        client = self._clients.find(client_id)
        if client is None:
            raise _rejected("the client is unknown", challenge=challenge)
        if method not in client.methods:
            raise _rejected(f"the client may not authenticate by {method}", challenge=challenge)
        return client

    def _basic(self, request: FormRequest) -> Client:
        credentials = basic_credentials(request.authorization or "")
        if credentials is None:
            raise _rejected("the Authorization header is not understood", challenge=True)
        client_id, secret = credentials
        if request.get("client_id") not in {None, client_id}:
            raise OAuthError("invalid_request", "the client_id is not that of the Authorization header")
        client = self._registered(client_id, AuthMethod.BASIC, challenge=True)
        return _with_secret(client, secret, challenge=True)

    def _by_id_alone(self, request: FormRequest) -> Client:
        client_id = request.get("client_id")
        if client_id is None:
            raise _rejected("the client is not named")
        client = self._clients.find(client_id)
        if client is not None and AuthMethod.TLS in client.methods:
            if request.certificate_subject is None or request.certificate_subject != client.certificate_subject:
                raise _rejected("the client certificate is missing or another's")
            return client
        return self._registered(client_id, AuthMethod.NONE)

    def _assertion(self, request: FormRequest) -> Client:
        if request.get("client_assertion_type") != ASSERTION_TYPE:
            raise _rejected("the client_assertion_type is not supported")
        assertion = request.require("client_assertion")
        named = unverified_subject(assertion)
        client = self._asserted(named) if named else None
        if named is None or client is None or AuthMethod.PRIVATE_KEY_JWT not in client.methods:
            raise _rejected("the client assertion names no client that may use one")
        if request.get("client_id") not in {None, client.client_id}:
            raise OAuthError("invalid_request", "the client_id is not that of the assertion")
        try:
            claims = verify_assertion(
                assertion, client.public_keys, issuer=named[0], audiences=self._audiences(), now=self._clock()
            )
        except jwt.PyJWTError as error:
            raise _rejected("the client assertion is not valid") from error
        if client.assertion_issuer is None:
            # A platform's token is the same at every request; one that the client signs itself must be fresh.
            self._once(client.client_id, named[2], float(claims["exp"]))
        return client

    def _asserted(self, named: tuple[str, str, str]) -> Client | None:
        for client in self._clients:
            expected = (
                client.assertion_issuer or client.client_id,
                client.assertion_subject or client.client_id,
            )
            if AuthMethod.PRIVATE_KEY_JWT in client.methods and expected == named[:2]:
                return client
        return None

    def _once(self, client_id: str, jti: str, expires_at: float) -> None:
        now = self._clock()
        self._seen = {key: end for key, end in self._seen.items() if end > now}
        if not jti or (client_id, jti) in self._seen:
            raise _rejected("the client assertion has no jti, or one that was used before")
        self._seen[client_id, jti] = expires_at


def _presented(request: FormRequest) -> list[AuthMethod]:
    methods: list[AuthMethod] = []
    if request.authorization is not None:
        methods.append(AuthMethod.BASIC)
    if request.get("client_assertion") is not None:
        methods.append(AuthMethod.PRIVATE_KEY_JWT)
    if request.get("client_secret") is not None:
        methods.append(AuthMethod.POST)
    return methods


def _with_secret(client: Client, secret: str, *, challenge: bool) -> Client:
    given = secret.encode()
    if not any(hmac.compare_digest(given, known.encode()) for known in client.secrets):
        raise _rejected("the client secret is wrong", challenge=challenge)
    return client


def _rejected(description: str, *, challenge: bool = False) -> OAuthError:
    return OAuthError("invalid_client", description, status=401, challenge=challenge)
