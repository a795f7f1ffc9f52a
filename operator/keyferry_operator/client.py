"""Talks to the API server: plain JSON over aiohttp, which costs a third of a typed client's time.

Bodies of Secrets pass through here, so nothing is logged but verb, kind and status.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import aiohttp

from keyferry_operator.access_tls import tls_context
from keyferry_operator.errors import ApiError
from keyferry_operator.refusals import missing_right, refusal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path
    from types import TracebackType

    import kopf

    from keyferry.secret import SecretValue

Object = dict[str, Any]

TIMEOUT: Final = 15.0
TRIES: Final = 4
PAGE: Final = 500
TOKEN_LIFE: Final = 60.0
"""Seconds after which a mounted token is read again: the kubelet rotates it."""

APPLY: Final = "application/apply-patch+yaml"
MERGE: Final = "application/merge-patch+json"
JSON: Final = "application/json"
DOCUMENTS: Final = "application/json, application/jwk-set+json"
METADATA: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
"""Asks for an object's metadata alone, where its content is known."""
METADATA_LIST: Final = METADATA.replace("PartialObjectMetadata", "PartialObjectMetadataList")
VERSION: Final = "/version"
SELF_REVIEW: Final = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
_RETRIED: Final = frozenset({429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object and where the API server has it."""

    group: str
    version: str
    plural: str
    namespaced: bool = True
    title: str = ""
    """Its name in objects, where one is written with it."""

    def path(self, namespace: str | None = None, name: str = "", subresource: str = "") -> str:
        """Return the URL path of a collection, an object or a subresource."""
        base = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [base]
        if namespace:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/".join(parts)


SECRETS: Final = Kind("", "v1", "secrets")
CONFIG_MAPS: Final = Kind("", "v1", "configmaps")
SERVICE_ACCOUNTS: Final = Kind("", "v1", "serviceaccounts")
NAMESPACES: Final = Kind("", "v1", "namespaces", namespaced=False)
PODS: Final = Kind("", "v1", "pods")
TOKEN_REVIEWS: Final = Kind("authentication.k8s.io", "v1", "tokenreviews", namespaced=False, title="TokenReview")
SELF_ACCESS_REVIEWS: Final = Kind(
    "authorization.k8s.io", "v1", "selfsubjectaccessreviews", namespaced=False, title="SelfSubjectAccessReview"
)
EVENTS: Final = Kind("events.k8s.io", "v1", "events")
LEASES: Final = Kind("coordination.k8s.io", "v1", "leases")
IDENTITIES: Final = Kind("keyferry.dev", "v1alpha1", "serviceidentities")
PROVIDERS: Final = Kind("keyferry.dev", "v1alpha1", "tokenproviders")
MUTATING_WEBHOOKS: Final = Kind("admissionregistration.k8s.io", "v1", "mutatingwebhookconfigurations", namespaced=False)
CLUSTER_PROVIDERS: Final = Kind("keyferry.dev", "v1alpha1", "clustertokenproviders", namespaced=False)


class KubeClient:
    """One connection pool to one API server. Use it in ``async with``; raises ApiError."""

    def __init__(self, info: kopf.ConnectionInfo, *, token_file: Path | None = None) -> None:
        self._server = info.server.rstrip("/")
        self._ssl = tls_context(info)
        self._token = info.token
        self._token_file = token_file
        self._token_read = 0.0

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self._ssl, limit=64, keepalive_timeout=60)
        self._session = aiohttp.ClientSession(connector=connector, trust_env=False, cookie_jar=aiohttp.DummyCookieJar())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def get(self, kind: Kind, namespace: str | None, name: str, *, cached: bool = False) -> Object | None:
        """Return an object as it is now (a quorum read), or None where it is not there.

        With ``cached`` it is what the API server remembers, which costs it little and may be some moments old.
        """
        query = {"resourceVersion": "0"} if cached else None
        try:
            return await self._request("GET", kind.path(namespace, name), query=query)
        except ApiError as error:
            if error.not_found:
                return None
            raise

    async def release(self) -> tuple[int, int]:
        """Return the API server's minor release, such as ``(1, 36)``."""
        found = await self._request("GET", VERSION)
        # Vendors add to them: "31+".
        parts = [re.match(r"[0-9]{1,6}", str(found.get(part, ""))) for part in ("major", "minor")]
        major, minor = (int(part[0]) if part is not None else 0 for part in parts)
        return major, minor

    async def document(self, path: str) -> Object:
        """Return a JSON document that is no object of the cluster, such as its keys. It is asked for once."""
        return await self._once("GET", path, None, None, {**self._headers(), "Accept": DOCUMENTS})

    async def review(self, kind: Kind, spec: Object, *, token: SecretValue | None = None) -> Object:
        """Have the API server judge something, as the bearer of ``token`` where one is given; return its ``status``."""
        body: Object = {"apiVersion": f"{kind.group}/{kind.version}", "kind": kind.title, "spec": spec}
        found = await self._request("POST", kind.path(), body=body, token=token)
        return dict(found.get("status") or {})

    async def accepts(self, token: SecretValue, user: str) -> bool:
        """Tell whether the API server takes ``token``, which it signed for ``user``, for a credential of its own."""
        review: Object = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        try:
            found = await self._request("POST", SELF_REVIEW, body=review, token=token)
        except ApiError as error:
            if error.status == 401:  # noqa: PLR2004 - RFC 9110
                return False
            if error.forbidden:  # it knows the bearer
                return True
            raise
        # Where the operator itself logs in with a certificate, that is what a token not accepted leaves.
        return bool(found["status"]["userInfo"].get("username") == user)

    async def pages(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        labels: str = "",
        fields: str = "",
        metadata_only: bool = False,
    ) -> AsyncIterator[Object]:
        """Yield the objects of a kind, or their metadata alone, of which no more than a page is in memory."""
        accept = METADATA_LIST if metadata_only else JSON
        async for _, items in self.listing(kind, namespace, labels=labels, fields=fields, accept=accept):
            for item in items:
                yield item

    async def find(self, kind: Kind, namespace: str | None, name: str) -> Object | None:
        """Return an object by its name, or None, where there is a right to list and need be none to get one."""
        found = [body async for body in self.pages(kind, namespace, fields=f"metadata.name={name}")]
        return found[0] if found else None

    async def listing(
        self, kind: Kind, namespace: str | None, *, labels: str = "", fields: str = "", accept: str = JSON
    ) -> AsyncIterator[tuple[str, list[Object]]]:
        """Yield the objects of a kind, page by page, each with the version from which a watch goes on."""
        query = {"limit": str(PAGE)}
        if labels:
            query["labelSelector"] = labels
        if fields:
            query["fieldSelector"] = fields
        while True:
            page = await self._request("GET", kind.path(namespace), query=query, accept=accept)
            metadata = page.get("metadata", {})
            yield str(metadata.get("resourceVersion", "")), page.get("items", [])
            if not metadata.get("continue"):
                return
            query["continue"] = metadata["continue"]

    async def create(
        self, kind: Kind, namespace: str | None, body: Object, *, subresource: str = "", name: str = ""
    ) -> Object:
        """Create an object; not repeated when the answer is lost, since it may be there then."""
        return await self._request("POST", kind.path(namespace, name, subresource), body=body, tries=1)

    async def replace(self, kind: Kind, namespace: str | None, body: Object) -> Object:
        """Write an object whose resourceVersion must still be the stored one."""
        return await self._request("PUT", kind.path(namespace, body["metadata"]["name"]), body=body, tries=1)

    async def apply(
        self,
        kind: Kind,
        namespace: str | None,
        body: Object,
        *,
        manager: str,
        subresource: str = "",
        force: bool = True,
    ) -> Object:
        """Apply own keys server-side."""
        return await self._request(
            "PATCH",
            kind.path(namespace, body["metadata"]["name"], subresource),
            body=body,
            content_type=APPLY,
            query={"fieldManager": manager, "force": "true" if force else "false", "fieldValidation": "Strict"},
        )

    async def merge(
        self,
        kind: Kind,
        namespace: str | None,
        name: str,
        patch: Object,
        *,
        subresource: str = "",
        metadata_only: bool = False,
    ) -> Object:
        """Merge-patch an object (RFC 7386); return it, or with ``metadata_only`` no more than its metadata."""
        path = kind.path(namespace, name, subresource)
        accept = METADATA if metadata_only else JSON
        return await self._request("PATCH", path, body=patch, content_type=MERGE, accept=accept)

    async def delete(self, kind: Kind, namespace: str | None, name: str, *, uid: str = "", version: str = "") -> bool:
        """Delete an object, where given only that of this uid and version; False where it was not there."""
        preconditions = {key: value for key, value in (("uid", uid), ("resourceVersion", version)) if value}
        body: Object = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if preconditions:
            body["preconditions"] = preconditions
        try:
            await self._request("DELETE", kind.path(namespace, name), body=body)
        except ApiError as error:
            if error.not_found:
                return False
            raise
        return True

    async def watch(
        self,
        kind: Kind,
        namespace: str | None,
        *,
        labels: str,
        version: str,
        seconds: int = 300,
        inactivity: float | None = None,
    ) -> AsyncIterator[Object]:
        """Yield watch events from ``version`` on. Ends when the server ends it; raises ApiError (410: list again).

        ``inactivity`` is for how many seconds it may say nothing.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(seconds),
        }
        if labels:
            query["labelSelector"] = labels
        timeout = aiohttp.ClientTimeout(total=seconds + 30, sock_connect=10, sock_read=inactivity or seconds + 15)
        try:
            async with self._session.get(
                self._server + kind.path(namespace), params=query, headers=self._headers(), timeout=timeout
            ) as answer:
                if answer.status >= 400:  # noqa: PLR2004 - RFC 9110
                    raise refusal(answer.status, await answer.read(), answer.headers)
                buffer = b""
                async for chunk in answer.content.iter_any():
                    *lines, buffer = (buffer + chunk).split(b"\n")
                    for line in lines:
                        if line.strip():
                            yield json.loads(line)
        except ApiError as error:
            if not error.forbidden:
                raise
            raise ApiError(
                missing_right("GET", kind.path(namespace), watch=True), status=error.status, cause=error.cause
            ) from None
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise ApiError(f"watching {kind.plural}: {type(error).__name__}") from None

    async def _request(
        self,
        verb: str,
        path: str,
        *,
        body: Object | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str = JSON,
        accept: str = JSON,
        tries: int = TRIES,
        token: SecretValue | None = None,
    ) -> Object:
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        headers = {**self._headers(content_type if data else "", token), "Accept": accept}
        what = path.rsplit("/namespaces/", maxsplit=1)[-1]
        for attempt in range(1, tries + 1):
            try:
                return await self._once(verb, path, data, query, headers)
            except ApiError as error:
                if attempt == tries or (error.status and error.status not in _RETRIED):
                    why = (
                        missing_right(verb, path, lacks=error.lacks)
                        if error.forbidden
                        else f"{verb} {what}: {error.message}"
                    )
                    raise ApiError(
                        why,
                        status=error.status,
                        cause=error.cause,
                        retry_after=error.retry_after,
                    ) from None
                await asyncio.sleep(min(error.retry_after or 0.2 * 2**attempt, 10.0))
        raise AssertionError("unreachable: the last try returns or raises")

    async def _once(
        self,
        verb: str,
        path: str,
        data: bytes | None,
        query: Mapping[str, str] | None,
        headers: Mapping[str, str],
    ) -> Object:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT, sock_connect=5)
        try:
            async with self._session.request(
                verb, self._server + path, data=data, params=query, headers=headers, timeout=timeout
            ) as answer:
                raw = await answer.read()
                if answer.status >= 400:  # noqa: PLR2004 - RFC 9110
                    raise refusal(answer.status, raw, answer.headers)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ApiError(f"the API server cannot be reached ({type(error).__name__})") from None
        try:
            parsed = json.loads(raw)
        except ValueError:
            raise ApiError("the API server's answer is not JSON") from None
        if not isinstance(parsed, dict):
            raise ApiError("the API server's answer is not an object")
        return parsed

    def _headers(self, content_type: str = "", token: SecretValue | None = None) -> dict[str, str]:
        """Return the headers of a request, as the bearer of ``token`` instead of the operator where one is given."""
        headers = {"Accept": "application/json", "User-Agent": "keyferry-operator"}
        if content_type:
            headers["Content-Type"] = content_type
        bearer = token.reveal() if token is not None else self._current_token()
        if bearer:
            headers["Authorization"] = f"Bearer {bearer}"
        return headers

    def _current_token(self) -> str | None:
        if self._token_file is None:
            return self._token
        now = asyncio.get_running_loop().time()
        if now - self._token_read > TOKEN_LIFE or self._token is None:
            self._token = self._token_file.read_text().strip()
            self._token_read = now
        return self._token
