"""A small client of the Kubernetes API for tests: plain documents in and out, any kind that the server knows.

It finds a kind's path by discovery, so that custom resources need no registration here. Each call is one request and
nothing is retried, because a test wants to see what the server said.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping, Sequence

T = TypeVar("T")
Document = dict[str, Any]
APPLY, MERGE, JSON_PATCH = (
    "application/apply-patch+yaml",
    "application/merge-patch+json",
    "application/json-patch+json",
)
FIELD_MANAGER = "keyferry-tests"
BUSY_PAUSES = (1.0, 1.0, 2.0, 4.0, 8.0)
REQUEST_TIMEOUT = 120.0
WAIT_TIMEOUT = 240.0
WAIT_STEP = 0.1


class ApiError(Exception):
    """The API server refused a request: ``code`` is the HTTP status, ``reason`` Kubernetes' own word for it."""

    def __init__(self, what: str, answer: httpx.Response) -> None:
        status = _json(answer)
        self.code = answer.status_code
        self.reason = str(status.get("reason", ""))
        self.message = str(status.get("message") or answer.text)
        super().__init__(f"the API server refused {what}: {self.code} {self.message}")


class Api:
    """The API as one user sees it."""

    def __init__(
        self, url: str, context: ssl.SSLContext, token: str | None, headers: Sequence[tuple[str, str]] = ()
    ) -> None:
        self.url = url.rstrip("/")
        self._context = context
        self._token = token
        authorization = [("Authorization", f"Bearer {token}")] if token else []
        self._client = httpx.Client(
            base_url=self.url,
            verify=context,
            trust_env=False,
            headers=[*authorization, *headers],
            timeout=REQUEST_TIMEOUT,
            # No connection outlives its request: there is nothing to close, and none breaks with a restarted server.
            limits=httpx.Limits(max_keepalive_connections=0),
        )
        self._resources: dict[str, list[Document]] = {}

    def with_token(self, token: str) -> Api:
        """Return the API as the bearer of ``token`` sees it."""
        return Api(self.url, self._context, token)

    def impersonate(self, user: str, *groups: str) -> Api:
        """Return the API as ``user`` would see it: with their own groups, or those of a service account without any."""
        headers = [("Impersonate-User", user), *(("Impersonate-Group", group) for group in groups)]
        return Api(self.url, self._context, self._token, headers)

    # Requests

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Any:
        """Send a request and return the decoded JSON, or the text where it is none. Raises ApiError."""
        answer = self._send(method, path, body, params, content_type)
        for pause in BUSY_PAUSES:
            if answer.status_code != httpx.codes.TOO_MANY_REQUESTS:
                break
            time.sleep(pause)  # nothing was done; one that has just started says so while its caches fill
            answer = self._send(method, path, body, params, content_type)
        if answer.is_error:
            raise ApiError(f"{method} {path}", answer)
        is_json = answer.headers.get("Content-Type", "").startswith("application/json")
        return answer.json() if is_json else answer.text

    def _send(
        self, method: str, path: str, body: Any, params: Mapping[str, str] | None, content_type: str
    ) -> httpx.Response:
        return self._client.request(
            method,
            path,
            content=None if body is None else json.dumps(body),
            params=params,
            headers={"Content-Type": content_type} if body is not None else None,
        )

    def get(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> Document:
        """Return one object. Raises ApiError, with code 404 where there is none."""
        return self._document("GET", self.path(api_version, kind, namespace, name))

    def find(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> Document | None:
        """Return one object, or None where there is none."""
        try:
            return self.get(api_version, kind, name, namespace)
        except ApiError as error:
            if error.code == httpx.codes.NOT_FOUND:
                return None
            raise

    def items(self, api_version: str, kind: str, namespace: str | None = None, **params: str) -> list[Document]:
        """Return the objects of a kind, of all namespaces if none is named; ``params`` such as ``labelSelector``."""
        answer = self._document("GET", self.path(api_version, kind, namespace), params=params)
        return [{"apiVersion": api_version, "kind": kind, **item} for item in answer["items"]]

    def create(self, document: Document) -> Document:
        """Create an object; ``metadata.generateName`` works too. Raises ApiError."""
        return self._document("POST", self._path_of(document, named=False), document)

    def apply(self, document: Document, *, manager: str = FIELD_MANAGER, force: bool = True) -> Document:
        """Create or change an object by server-side apply. Raises ApiError."""
        params = {"fieldManager": manager, "force": str(force).lower()}
        return self._document("PATCH", self._path_of(document), document, params=params, content_type=APPLY)

    def replace(self, document: Document, subresource: str = "") -> Document:
        """Replace an object, or its ``status``. With a resourceVersion in it, a conflict raises ApiError (409)."""
        return self._document("PUT", self._path_of(document) + _below(subresource), document)

    def patch(self, document: Document, changes: Any, *, subresource: str = "", content_type: str = MERGE) -> Document:
        """Change the object that ``document`` names by a JSON merge patch, or another kind of patch."""
        path = self._path_of(document) + _below(subresource)
        return self._document("PATCH", path, changes, content_type=content_type)

    def delete(self, document: Document, **options: Any) -> None:
        """Delete the object that ``document`` names; ``options`` are those of DeleteOptions. Gone already is fine."""
        try:
            self.request("DELETE", self._path_of(document), options or None)
        except ApiError as error:
            if error.code != httpx.codes.NOT_FOUND:
                raise

    def delete_all(self, api_version: str, kind: str, namespace: str, **params: str) -> None:
        """Delete the objects of a kind in a namespace."""
        self.request("DELETE", self.path(api_version, kind, namespace), params=params)

    # What tests often ask

    def service_account_token(
        self, namespace: str, name: str, audiences: Sequence[str] = (), seconds: int = 3600
    ) -> str:
        """Return a token of a service account, from the TokenRequest API; without audiences it is for the API."""
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": seconds, **({"audiences": list(audiences)} if audiences else {})},
        }
        path = self.path("v1", "ServiceAccount", namespace, name) + "/token"
        return str(self._document("POST", path, body)["status"]["token"])

    def may(self, user: str, verb: str, resource: str, namespace: str | None = None, **attributes: str) -> bool:
        """Tell whether ``user`` has a right on ``secrets``, ``pods/log``, ``leases.coordination.k8s.io`` and the like.

        ``attributes`` are more of SubjectAccessReview's resourceAttributes, such as ``name``.
        """
        whole, _, group = resource.partition(".")
        plural, _, subresource = whole.partition("/")
        wanted = {"verb": verb, "group": group, "resource": plural, "subresource": subresource, **attributes}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": user,
                "groups": groups_of(user),
                "resourceAttributes": {**wanted, **({"namespace": namespace} if namespace else {})},
            },
        }
        return bool(self.create(review)["status"]["allowed"])

    def path(self, api_version: str, kind: str, namespace: str | None = None, name: str | None = None) -> str:
        """Return the path of a kind's collection, or of one object. Raises LookupError for an unknown kind."""
        for resource in self.resources(api_version):
            if resource["kind"] == kind and "/" not in resource["name"]:
                inside = f"/namespaces/{namespace}" if resource["namespaced"] and namespace else ""
                return f"{_root(api_version)}{inside}/{resource['name']}" + _below(name or "")
        raise LookupError(f"the API server has no {kind} in {api_version}")

    def resources(self, api_version: str) -> list[Document]:
        """Return what the server says of a version's resources (an APIResourceList's ``resources``)."""
        if api_version not in self._resources:
            try:
                found = self._document("GET", _root(api_version))
            except ApiError as error:
                if error.code == httpx.codes.NOT_FOUND:
                    return []
                raise
            self._resources[api_version] = found["resources"]
        return self._resources[api_version]

    def forget_resources(self) -> None:
        """Ask anew which kinds there are, as after new CustomResourceDefinitions."""
        self._resources.clear()

    def _path_of(self, document: Document, *, named: bool = True) -> str:
        metadata = document.get("metadata", {})
        name = metadata.get("name") if named else None
        return self.path(document["apiVersion"], document["kind"], metadata.get("namespace"), name)

    def _document(self, method: str, path: str, body: Any = None, **options: Any) -> Document:
        answer: Document = self.request(method, path, body, **options)
        return answer


def eventually(
    probe: Callable[[], T | None], what: str, *, timeout: float = WAIT_TIMEOUT, step: float = WAIT_STEP
) -> T:
    """Return the first true answer of ``probe``, asked every ``step`` seconds; AssertionError after ``timeout``."""
    deadline = time.monotonic() + timeout
    while True:
        found = probe()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what}: not so after {timeout:.0f} s, at last {found!r}"
        time.sleep(step)


def groups_of(user: str) -> list[str]:
    """Return the groups that the API server gives to ``user``, be it a service account or a person."""
    parts = user.split(":")
    if parts[:2] == ["system", "serviceaccount"]:
        return ["system:serviceaccounts", f"system:serviceaccounts:{parts[2]}", "system:authenticated"]
    return ["system:authenticated"]


def _root(api_version: str) -> str:
    return f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"


def _below(name: str) -> str:
    return f"/{name}" if name else ""


def _json(answer: httpx.Response) -> Document:
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
