"""What a Tiled server says of itself: ``GET /api/v1/``."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Final, TypeAlias
from urllib.parse import quote_plus, urlsplit

from keyferry.errors import AnswerError, Reason, ResourceError
from keyferry.grants.document import Document, host_of, read_object, shown
from keyferry.grants.failure import Asked, failure, is_success, malformed
from keyferry.model import HttpRequest, HttpResponse

Discovery: TypeAlias = Generator[HttpRequest, HttpResponse, "TiledMetadata"]

_PASSWORD_MODES: Final = frozenset({"internal", "password"})  # the second is what older servers call the first


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

    @property
    def hosts(self) -> frozenset[str]:
        """The one ``host[:port]`` that credentials go to: links to other origins are never used."""
        return frozenset({host_of(self.api_url)})


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
    """Ask the server at ``url`` for its endpoints and choose the authenticator that takes passwords.

    ``authenticator`` is needed only where the server has several. ``now`` (Unix seconds) is what a ``Retry-After`` date
    is measured from. Raises `ResourceError` where the authenticator named is not there or takes no passwords, and
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
    name, problem = _choose({name: provider.get("mode") for name, provider in known.items()}, wanted, api_url)
    links = authentication.get("links")
    links = links if isinstance(links, dict) else {}
    own = known[name].get("links") if name else {}
    own_link = own.get("auth_endpoint") if isinstance(own, dict) else None
    return TiledMetadata(
        api_url=api_url,
        authenticator=name,
        login_endpoint=_link(own_link, api_url, f"auth/provider/{quote_plus(name)}/token") if name else "",
        refresh_endpoint=_link(links.get("refresh_session"), api_url, "auth/session/refresh"),
        # The link to revoke is that of another call, which takes a session's id.
        revoke_endpoint=f"{api_url}auth/session/revoke",
        api_key_endpoint=_link(links.get("apikey"), api_url, "auth/apikey"),
        whoami_endpoint=_link(links.get("whoami"), api_url, "auth/whoami"),
        login_problem=problem,
    )


def _choose(modes: dict[str, object], wanted: str, api_url: str) -> tuple[str, str]:
    """Return the authenticator that takes passwords, or why there is none; one that is wanted must be it."""
    able = sorted(name for name, mode in modes.items() if mode in _PASSWORD_MODES)
    choices = ", ".join(shown(name) for name in able) or "none"
    if wanted and wanted not in modes:
        raise ResourceError(
            f"tiled.authenticator: the server at {api_url} has no authenticator {shown(wanted)}; those that take "
            f"passwords: {choices}."
        )
    if wanted and wanted not in able:
        raise ResourceError(
            f"tiled.authenticator: {shown(wanted)} sends people to a login page and takes no passwords; those that do: "
            f"{choices}. Give Keyferry a refresh token of a session instead (grant RefreshToken)."
        )
    if wanted or len(able) == 1:
        return wanted or able[0], ""
    if able:
        return (
            "",
            f"The Tiled server at {api_url} has several authenticators: set tiled.authenticator to one of {choices}.",
        )
    if modes:
        return "", (
            f"No authenticator of the Tiled server at {api_url} takes passwords: give Keyferry a refresh token of a "
            "session (grant RefreshToken)."
        )
    return "", f"The Tiled server at {api_url} has no logins (it is run for a single user), so it issues no tokens."


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
