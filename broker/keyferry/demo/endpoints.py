"""The issuer's HTTP interface without a network: from a request to its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from keyferry.demo.wire import Answer, FormRequest, HttpRequest, OAuthError

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyferry.demo.token_service import TokenService

NO_STORE: Final = {"Cache-Control": "no-store"}
OPENID_CONFIGURATION: Final = "/.well-known/openid-configuration"
OAUTH_METADATA: Final = "/.well-known/oauth-authorization-server"


class Endpoints:
    """Routes requests to a `TokenService`, under the path of its issuer identifier."""

    def __init__(self, service: TokenService) -> None:
        self._service = service
        prefix = urlsplit(service.issuer).path.rstrip("/")
        self._routes: dict[tuple[str, str], Callable[[HttpRequest], Answer]] = {
            ("POST", f"{prefix}/token"): self._token,
            ("POST", f"{prefix}/revoke"): self._revoke,
            ("POST", f"{prefix}/device_authorization"): self._device,
            ("POST", f"{prefix}/par"): self._push,
            ("POST", f"{prefix}/introspect"): self._introspect,
            ("GET", f"{prefix}/jwks"): lambda _: Answer(200, service.signer.jwks()),
            ("GET", prefix + OPENID_CONFIGURATION): self._metadata,
            # RFC 8414 3.1 puts the well-known part between host and path.
            ("GET", OAUTH_METADATA + prefix): self._metadata,
        }

    def answer(self, request: HttpRequest) -> Answer:
        """Return the answer to a request; a refusal is an answer too, and nothing is raised."""
        route = self._routes.get((request.method, request.path))
        if route is None:
            status = 405 if any(path == request.path for _, path in self._routes) else 404
            return Answer(status, {"error": "invalid_request", "error_description": "there is no such endpoint"})
        try:
            return route(request)
        except OAuthError as error:
            return error.answer()

    def _token(self, request: HttpRequest) -> Answer:
        return Answer(200, self._service.token(FormRequest.parse(request)), NO_STORE)

    def _device(self, request: HttpRequest) -> Answer:
        return Answer(200, self._service.authorize_device(FormRequest.parse(request)), NO_STORE)

    def _push(self, request: HttpRequest) -> Answer:
        return Answer(201, self._service.push_authorization(FormRequest.parse(request)), NO_STORE)

    def _revoke(self, request: HttpRequest) -> Answer:
        self._service.revoke(FormRequest.parse(request))
        return Answer(200, None)

    def _introspect(self, request: HttpRequest) -> Answer:
        return Answer(200, self._service.introspect(FormRequest.parse(request)), NO_STORE)

    def _metadata(self, _: HttpRequest) -> Answer:
        return Answer(200, self._service.metadata())
