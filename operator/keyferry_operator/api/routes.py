"""Which request goes where. Paths are matched as they came: nothing of ours is percent-encoded."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, TypeAlias

from aiohttp import web

from keyferry.wire import ProblemReason
from keyferry_operator.api.answers import Denied, not_found

if TYPE_CHECKING:
    from collections.abc import Mapping

Handler: TypeAlias = Callable[["Asked"], Awaitable[web.StreamResponse]]

VARIABLES: Final[Mapping[str, str]] = {
    "namespace": r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?",
    "name": r"[a-z0-9](?:[-a-z0-9.]{0,61}[a-z0-9])?",
    "operation": r"[a-z][a-z-]{0,31}",
}
"""What stands in a template's braces, and the text that it takes."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request on its way to its handler."""

    request: web.BaseRequest
    path: Mapping[str, str]
    """What its path says, by variable."""
    query: str
    """As it came."""


class Routes:
    """The table of what is served."""

    def __init__(self) -> None:
        self._routes: list[tuple[re.Pattern[str], dict[str, Handler]]] = []
        self._by_template: dict[str, dict[str, Handler]] = {}

    def add(self, method: str, template: str, handler: Handler) -> None:
        """Serve ``method`` on paths such as ``/v1/namespaces/{namespace}``; raises ValueError if that is taken."""
        methods = self._by_template.get(template)
        if methods is None:
            methods = self._by_template[template] = {}
            pattern = re.sub(
                r"\\\{(\w+)\\\}", lambda found: f"(?P<{found[1]}>{VARIABLES[found[1]]})", re.escape(template)
            )
            self._routes.append((re.compile(pattern), methods))
        if method in methods:
            raise ValueError(f"{method} {template} is served already")
        methods[method] = handler

    @property
    def served(self) -> dict[str, frozenset[str]]:
        """The methods of each template."""
        return {template: frozenset(methods) for template, methods in self._by_template.items()}

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Have a request answered. Raises Denied."""
        path, _, query = request.raw_path.partition("?")
        for pattern, methods in self._routes:
            found = pattern.fullmatch(path)
            if found is None:
                continue
            handler = methods.get(request.method)
            if handler is None:
                raise Denied(
                    HTTPStatus.METHOD_NOT_ALLOWED,
                    ProblemReason.BAD_REQUEST,
                    "method not allowed",
                    headers={"Allow": ", ".join(sorted(methods))},
                )
            return await handler(Asked(request, found.groupdict(), query))
        raise not_found()
