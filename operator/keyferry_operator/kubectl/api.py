"""The API server as a person sees it: each refusal becomes a sentence that says what is missing and who can help."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, Self

import httpx

from keyferry.cli.exits import CommandError
from keyferry_operator.client import APPLY, MERGE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from keyferry_operator.client import Kind, Object
    from keyferry_operator.kubectl.access import Access

TIMEOUT: Final = 15.0
PAGE: Final = 500
WATCH: Final = 300
"""Seconds of one watch; then another one goes on."""
MANAGER: Final = "kubectl-keyferry"
METADATA: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
"""Asks for an object without its content: of a Secret, everything but what is secret."""
_USER: Final = re.compile(r'User "([^"]{1,200})" cannot')
_VALUE: Final = re.compile(r'^(Invalid|Unsupported|Duplicate) value: ("(?:[^"\\]|\\.)*"|[^:]*): ')
_CLOCKS_DIFFER: Final = 5.0
"""Seconds by which this machine's clock and the API server's may differ without being told apart."""


@dataclass(frozen=True, slots=True)
class Cause:
    """One thing that the API server did not like about an object."""

    field: str
    message: str
    """Without the value that was refused: it may have been put there by mistake."""


class RefusedError(CommandError):
    """The API server refused, or could not be reached; the message is for the person who asked."""

    def __init__(self, message: str, *, status: int = 0, causes: tuple[Cause, ...] = (), denied: bool = False) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status; 0 where no answer came."""
        self.causes = causes
        self.denied = denied
        """Whether a right is missing, rather than that a policy objects."""


class Api:
    """One API server, one person. Use it in ``with``; its methods raise RefusedError."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._offset = 0.0

    def __enter__(self) -> Self:
        self._http = httpx.Client(
            base_url=self._access.server,
            verify=self._access.tls,
            proxy=self._access.proxy,
            timeout=TIMEOUT,
            headers=[("User-Agent", MANAGER), *self._access.impersonation],
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def now(self) -> float:
        """Return the time by the API server's clock (Unix seconds), as far as it has shown it."""
        return time.time() + self._offset

    def get(self, kind: Kind, namespace: str | None, name: str, *, metadata_only: bool = False) -> Object | None:
        """Return an object, or None where it is not there."""
        headers = {"Accept": METADATA} if metadata_only else {}
        answer = self._send("GET", kind.path(namespace, name), headers=headers)
        if answer.status_code == httpx.codes.NOT_FOUND and _about(answer).get("details", {}).get("name"):
            return None
        return self._read(answer, "get", kind, namespace)

    def items(self, kind: Kind, namespace: str | None, **query: str) -> tuple[str, list[Object]]:
        """Return the objects of a kind, and the version from which a watch goes on; ``query`` as ``fieldSelector``."""
        found: list[Object] = []
        asked = {"limit": str(PAGE), **query}
        while True:
            page = self._read(self._send("GET", kind.path(namespace), params=asked), "list", kind, namespace)
            found += page.get("items") or ()
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                return str(metadata.get("resourceVersion", "")), found
            asked["continue"] = metadata["continue"]

    def watch(self, kind: Kind, namespace: str | None, version: str, **query: str) -> Iterator[Object]:
        """Yield watch events from ``version`` on, until the server ends it."""
        asked = {"watch": "true", "resourceVersion": version, "timeoutSeconds": str(WATCH), **query}
        timeout = httpx.Timeout(TIMEOUT, read=WATCH + TIMEOUT)
        try:
            with self._http.stream(
                "GET", kind.path(namespace), params=asked, timeout=timeout, **self._extras({})
            ) as answer:
                if answer.is_error:
                    answer.read()
                    self._read(answer, "watch", kind, namespace)
                for line in answer.iter_lines():
                    if line.strip():
                        yield json.loads(line)
        except (httpx.TransportError, ValueError) as error:
            raise self._unreachable(error) from None

    def annotate(self, kind: Kind, namespace: str, name: str, annotations: Mapping[str, str]) -> Object:
        """Set annotations of an object (RFC 7386)."""
        body = {"metadata": {"annotations": dict(annotations)}}
        answer = self._send("PATCH", kind.path(namespace, name), body=body, content_type=MERGE)
        return self._read(answer, "patch", kind, namespace)

    def try_apply(self, kind: Kind, namespace: str | None, body: Object) -> None:
        """Have an object checked as if it were applied, with all that the server checks; nothing is stored."""
        query = {"fieldManager": MANAGER, "force": "true", "dryRun": "All", "fieldValidation": "Strict"}
        path = kind.path(namespace, body["metadata"]["name"])
        answer = self._send("PATCH", path, body=body, content_type=APPLY, params=query)
        self._read(answer, "patch", kind, namespace)

    def _send(
        self,
        verb: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        sent = {**(headers or {}), **({"Content-Type": content_type} if content_type else {})}
        content = None if body is None else json.dumps(body, separators=(",", ":"))
        try:
            answer = self._http.request(verb, path, params=params, content=content, **self._extras(sent))
        except httpx.TransportError as error:
            raise self._unreachable(error) from None
        self._set_clock(answer.headers.get("Date", ""))
        return answer

    def _extras(self, headers: Mapping[str, str]) -> dict[str, Any]:
        authorization = self._access.authorization()
        extensions = {"sni_hostname": self._access.server_name} if self._access.server_name else {}
        return {
            "headers": {**headers, **({"Authorization": authorization} if authorization else {})},
            "extensions": extensions,
        }

    def _set_clock(self, date: str) -> None:
        try:
            offset = parsedate_to_datetime(date).timestamp() - time.time()
        except ValueError:
            return
        self._offset = offset if abs(offset) > _CLOCKS_DIFFER else 0.0

    def _unreachable(self, error: Exception) -> RefusedError:
        return RefusedError(
            f"the API server {self._access.server} cannot be reached: {str(error) or type(error).__name__}"
        )

    def _read(self, answer: httpx.Response, verb: str, kind: Kind, namespace: str | None) -> Object:
        if answer.is_error:
            raise self._refusal(answer, verb, kind, namespace)
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise RefusedError(f"what answers at {self._access.server} is no API server")
        return found

    def _refusal(self, answer: httpx.Response, verb: str, kind: Kind, namespace: str | None) -> RefusedError:
        code, about = answer.status_code, _about(answer)
        denied = code == httpx.codes.FORBIDDEN and _USER.search(_message(about)) is not None
        if code == httpx.codes.UNAUTHORIZED:
            text = (
                f"the API server {self._access.server} does not know you: log in again (your kubeconfig's credentials)"
            )
        elif denied:
            text = denial(_message(about), verb, kind, namespace)
        elif code == httpx.codes.NOT_FOUND and not (about.get("details") or {}).get("name"):
            text = (
                f"this cluster knows no {kind.plural}.{kind.group}: Keyferry's CustomResourceDefinitions are not"
                " installed, or are older than this program"
            )
        else:
            text = f"the API server answers {code} {about.get('reason', '')}".rstrip()
        return RefusedError(text, status=code, causes=_causes(about), denied=denied)


def denial(message: str, verb: str, kind: Kind, namespace: str | None) -> str:
    """Say in a sentence which right somebody lacks, and which role has it."""
    found = _USER.search(message)
    who = found[1] if found is not None else "you"
    resource = f"{kind.plural}.{kind.group}" if kind.group else kind.plural
    where = f"in namespace {namespace}" if namespace else "in the whole cluster"
    text = f"{who} may not {verb} {resource} {where}"
    if kind.group != "keyferry.dev" or (kind.plural == "clustertokenproviders" and verb == "patch"):
        return f"{text}; an administrator of the cluster can grant it"
    role = "view" if verb in {"get", "list", "watch"} else "edit"
    advice = f"the role {role} has that right (Keyferry's chart adds it): ask for it with a RoleBinding"
    other = "" if namespace else ", or name one namespace with -n"
    return f"{text}; {advice}{other}"


def _about(answer: httpx.Response) -> dict[str, Any]:
    """Return the Status object of a refusal."""
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _message(about: Mapping[str, Any]) -> str:
    return str(about.get("message") or "")


def _causes(about: Mapping[str, Any]) -> tuple[Cause, ...]:
    """Return what the server says is wrong, without the values that it quotes."""
    listed = (about.get("details") or {}).get("causes") or ()
    found = [Cause(str(item.get("field") or ""), _plain(str(item.get("message") or ""))) for item in listed]
    if found or not about:
        return tuple(found)
    text = _message(about)
    return (Cause("", _plain(text)),) if text else ()


def _plain(message: str) -> str:
    text = _VALUE.sub(r"\1 value: ", message)
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())[:1000]
