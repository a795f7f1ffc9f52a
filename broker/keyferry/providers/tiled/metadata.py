"""What a Tiled server says of itself: ``GET /api/v1/``."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Final, TypeAlias
from urllib.parse import quote_plus, urlsplit

from keyferry.errors import AnswerError, Reason, ResourceError
from keyferry.grants.document import Document, host_of, is_vschar, read_object, shown, strings
from keyferry.grants.failure import Asked, failure, is_success, malformed
from keyferry.model import HttpRequest, HttpResponse
from keyferry.providers.metadata import endpoint_problem

Discovery: TypeAlias = Generator[HttpRequest, HttpResponse, "TiledMetadata"]

_PASSWORD_MODES: Final = frozenset({"internal", "password"})  # the second is what older servers call the first
_BROWSER_MODE: Final = "external"
IDENTITY_PROVIDER_SCOPES: Final = ("openid", "offline_access")
"""What Tiled's own client asks of an identity provider."""


@dataclass(frozen=True, slots=True)
class IdentityProvider:
    """Who issues the tokens of a Tiled server that issues none itself (its ``ProxiedOIDCAuthenticator``)."""

    client_id: str
    """Of a public client, as device logins use it."""
    token_endpoint: str
    device_authorization_endpoint: str
    scopes: tuple[str, ...] = IDENTITY_PROVIDER_SCOPES


@dataclass(frozen=True, slots=True)
class DeviceLogin:
    """How a person logs in by device code."""

    authenticator: str
    authorize_endpoint: str = ""
    """Of Tiled's own flow; '' where the identity provider runs it."""
    poll_endpoint: str = ""
    """Likewise."""


@dataclass(frozen=True, slots=True)
class TiledMetadata:
    """A Tiled server and its endpoints."""

    api_url: str
    """The canonical API address, as `api_uri` returns it."""
    authenticator: str
    """The one that takes passwords; '' where there is none, or several and none is chosen."""
    login_endpoint: str
    """'' where ``authenticator`` is."""
    refresh_endpoint: str
    revoke_endpoint: str
    api_key_endpoint: str
    whoami_endpoint: str
    login_problem: str = ""
    """Why nobody can log in with a password, for people; the other endpoints work all the same."""
    device: DeviceLogin | None = None
    device_problem: str = ""
    """Why nobody can log in by device code, for people."""
    identity_provider: IdentityProvider | None = None
    """Where sessions are begun and refreshed instead of at the server itself: such a server has no other logins."""

    @property
    def hosts(self) -> frozenset[str]:
        """Each ``host[:port]`` that credentials go to: the server's own, and its identity provider's.

        Links to other origins are never used for anything else.
        """
        identity_provider = self.identity_provider
        urls = [self.api_url]
        if identity_provider is not None:
            urls += [identity_provider.token_endpoint, identity_provider.device_authorization_endpoint]
        return frozenset(map(host_of, urls))


def api_uri(url: str) -> str:
    """Return the address that Tiled's own client makes of ``url``: host in lower case, no default port, ``…/api/v1/``.

    ``url`` may be the landing page, ``/api``, ``/api/v1`` or an address below it. Raises `ResourceError` where it is no
    absolute http or https URL.
    """
    try:
        parts = urlsplit(url.strip())
    except ValueError:
        raise ResourceError("tiled.url: is not a URL.") from None
    if parts.scheme.lower() not in {"http", "https"} or not host_of(url.strip()) or "@" in parts.netloc:
        raise ResourceError("tiled.url: must be an absolute http or https URL without a user name.")
    path = parts.path.partition("/metadata")[0].rstrip("/")
    if "/api" not in path:
        path += "/api/v1"
    elif "/v1" not in path:
        path += "/v1"
    return f"{parts.scheme.lower()}://{host_of(url.strip())}{path}/"


def token_directory_name(url: str) -> str:
    """Return the name of the directory in which Tiled's client keeps the tokens of the server at ``url``."""
    return quote_plus(api_uri(url))


def discover(url: str, authenticator: str = "", *, now: float = 0.0) -> Discovery:
    """Ask the server at ``url`` for its endpoints and choose the authenticators, for passwords and for device codes.

    ``authenticator`` is needed only where the server has several of a kind. ``now`` (Unix seconds) is what a
    ``Retry-After`` date is measured from. Raises `ResourceError` where the authenticator named is not there, and
    `Ambiguous`, `Refused` or `AnswerError` where what answers is not Tiled.
    """
    api_url = api_uri(url)
    asked = Asked(api_url, what="Tiled server", at=now)
    response = yield HttpRequest("GET", api_url, headers={"Accept": "application/json"})
    document = read_object(response.body) if is_success(response) else None
    if document is None:
        raise failure(response, asked) if not is_success(response) else malformed(asked)
    authentication = document.get("authentication")
    if not isinstance(authentication, dict):
        raise AnswerError(
            f"What answers at {api_url} is not Tiled: it says nothing about authentication. Correct tiled.url.",
            reason=Reason.INVALID_SPEC,
        )
    return _read(authentication, api_url, authenticator)


def _read(authentication: Document, api_url: str, wanted: str) -> TiledMetadata:
    providers = authentication.get("providers")
    known = {
        provider["provider"]: provider
        for provider in (providers if isinstance(providers, list) else ())
        if isinstance(provider, dict) and isinstance(provider.get("provider"), str)
    }
    if wanted and wanted not in known:
        there = ", ".join(shown(name) for name in sorted(known)) or "none"
        raise ResourceError(
            f"tiled.authenticator: the server at {api_url} has no authenticator {shown(wanted)}; it has: {there}."
        )
    modes = {name: provider.get("mode") for name, provider in known.items()}
    name, problem = _choose(_PASSWORDS, modes, wanted, api_url)
    person, person_problem = _choose(_DEVICE_CODES, modes, wanted, api_url)
    links = _object(authentication.get("links"))
    return TiledMetadata(
        api_url=api_url,
        authenticator=name,
        login_endpoint=_token_endpoint(known[name], api_url, name) if name else "",
        # The link to refresh is the identity provider's where there is one, and that to revoke is of another call.
        refresh_endpoint=_link(links.get("refresh_session"), api_url, "auth/session/refresh"),
        revoke_endpoint=f"{api_url}auth/session/revoke",
        api_key_endpoint=_link(links.get("apikey"), api_url, "auth/apikey"),
        whoami_endpoint=_link(links.get("whoami"), api_url, "auth/whoami"),
        login_problem=problem,
        device=_device_login(known[person], api_url, person) if person else None,
        device_problem=person_problem,
        identity_provider=next(filter(None, (_identity_provider(each, api_url) for each in known.values())), None),
    )


@dataclass(frozen=True, slots=True)
class _Kind:
    """A way to log in, and what is said where a server does not have it."""

    modes: frozenset[str]
    what: str
    instead: str


_PASSWORDS: Final = _Kind(
    _PASSWORD_MODES,
    "takes passwords",
    "let a person approve it (grant DeviceCode), or give Keyferry a refresh token of a session (grant RefreshToken)",
)
_DEVICE_CODES: Final = _Kind(
    frozenset({_BROWSER_MODE}), "logs people in through a browser", "log in with a password (grant Password)"
)


def _choose(kind: _Kind, modes: dict[str, object], wanted: str, api_url: str) -> tuple[str, str]:
    """Return the authenticator of a kind, or why there is none; one that is wanted must be it."""
    able = sorted(name for name, mode in modes.items() if mode in kind.modes)
    choices = ", ".join(shown(name) for name in able) or "none"
    if wanted and wanted not in able:
        return "", (
            f"tiled.authenticator: {shown(wanted)} at {api_url} is none that {kind.what}; those that do: {choices}."
            f" Choose one of them, or {kind.instead}."
        )
    if wanted or len(able) == 1:
        return wanted or able[0], ""
    if able:
        return (
            "",
            f"The Tiled server at {api_url} has several authenticators: set tiled.authenticator to one of {choices}.",
        )
    if modes:
        return "", f"No authenticator of the Tiled server at {api_url} {kind.what}: {kind.instead}."
    return "", f"The Tiled server at {api_url} has no logins (it is run for a single user), so it issues no tokens."


def _device_login(provider: Document, api_url: str, name: str) -> DeviceLogin:
    if _object(provider.get("links")).get("client_id"):
        return DeviceLogin(name)
    link = _object(provider.get("links")).get("auth_endpoint")
    return DeviceLogin(
        authenticator=name,
        authorize_endpoint=_link(link, api_url, f"auth/provider/{quote_plus(name)}/authorize"),
        # The answer names this address as well; a server does not choose where else a device code goes.
        poll_endpoint=f"{api_url}auth/provider/{quote_plus(name)}/token",
    )


def _token_endpoint(provider: Document, api_url: str, name: str) -> str:
    link = _object(provider.get("links")).get("auth_endpoint")
    return _link(link, api_url, f"auth/provider/{quote_plus(name)}/token")


def _identity_provider(provider: Document, api_url: str) -> IdentityProvider | None:
    """Return who issues the tokens where that is not Tiled; raise AnswerError where they must not be asked there."""
    links = _object(provider.get("links"))
    client_id = links.get("client_id")
    if not is_vschar(client_id) or not client_id:
        return None
    endpoints = {name: links.get(name) for name in ("token_endpoint", "auth_endpoint")}
    for name, url in endpoints.items():
        problem = endpoint_problem(url, urlsplit(api_url).scheme) if isinstance(url, str) else "is not there"
        if problem:
            raise AnswerError(
                f"The Tiled server at {api_url} sends people to an identity provider whose {name} {problem}. Have the"
                " server's configuration corrected.",
                reason=Reason.INVALID_SPEC,
            )
    extra = tuple(scope for scope in strings(provider.get("extra_scopes")) if is_vschar(scope))
    return IdentityProvider(
        client_id=str(client_id),
        token_endpoint=str(endpoints["token_endpoint"]),
        device_authorization_endpoint=str(endpoints["auth_endpoint"]),
        scopes=tuple(dict.fromkeys((*IDENTITY_PROVIDER_SCOPES, *extra))),
    )


def _object(value: object) -> Document:
    return value if isinstance(value, dict) else {}


def _link(link: object, api_url: str, default: str) -> str:
    """Return ``link`` if it leads to the very origin that is configured, else the usual path below the API's address.

    Behind a proxy Tiled may write links with the wrong scheme; and a server must not choose where our tokens go.
    """
    if isinstance(link, str) and link.isascii() and link.isprintable():
        try:
            parts = urlsplit(link)
        except ValueError:
            return api_url + default
        own = urlsplit(api_url)
        same = parts.scheme.lower() == own.scheme and host_of(link) == host_of(api_url) and "@" not in parts.netloc
        if same and not parts.query and not parts.fragment and "{" not in parts.path:
            return link
    return api_url + default
