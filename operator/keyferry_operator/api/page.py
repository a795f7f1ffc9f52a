"""``POST /v1/page/<operation>``: what the approval page does for people, for the page's own service account alone."""

from __future__ import annotations

import asyncio
import hashlib
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, final

from keyferry.errors import Reason, Refused, RetryClass
from keyferry.web.page.wire import LONGEST_BODY, PageHandler
from keyferry.wire import MEDIA_TYPE, PROBLEM_TYPE
from keyferry_operator.api.answers import answer, not_found, read_body
from keyferry_operator.client import SELF_ACCESS_REVIEWS
from keyferry_operator.errors import ApiError
from keyferry_operator.reads import SharedReads

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import web

    from keyferry.model import ObjectKey
    from keyferry.question import Approvals
    from keyferry.secret import SecretValue
    from keyferry_operator.api.callers import Callers
    from keyferry_operator.api.limits import Buckets
    from keyferry_operator.api.routes import Asked
    from keyferry_operator.catalog import Catalog
    from keyferry_operator.client import KubeClient

SHARED_FOR: Final = 10.0
"""Seconds for which the API server's word on a viewer is believed."""
AT_ONCE: Final = 8


@final
class PageEndpoint:
    """Answers the page."""

    def __init__(
        self, callers: Callers, buckets: Buckets, approvals: Approvals, *, namespace: str, account: str
    ) -> None:
        """``account`` is the page's service account in the operator's own ``namespace``; empty: there is no page."""
        self._callers = callers
        self._buckets = buckets
        self._approvals = approvals
        self._place = (namespace, account)
        self._handler = PageHandler()

    async def post(self, asked: Asked) -> web.StreamResponse:
        """Carry out one operation. Raises Denied for anybody but the page."""
        caller = await self._callers.identify(asked.request)
        if (caller.namespace, caller.service_account) != self._place:
            raise not_found()
        self._buckets.take(caller.pod_uid)
        body = await read_body(asked.request, LONGEST_BODY)
        status, found = await self._handler.handle(self._approvals, asked.path["operation"], body)
        media_type = PROBLEM_TYPE if status >= HTTPStatus.BAD_REQUEST else MEDIA_TYPE
        return answer(found, status, media_type=media_type)


@final
class ClusterViewers:
    """Implements ``keyferry.engine.questions.Viewers``: the API server is asked, as the viewer.

    So what somebody sees is what ``kubectl get serviceidentities`` would show them, whatever kind of token they have.
    """

    def __init__(self, client: KubeClient, catalog: Catalog) -> None:
        self._client = client
        self._catalog = catalog
        self._reads: SharedReads[tuple[bytes, str], bool] = SharedReads(SHARED_FOR)
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def sees(self, viewer: SecretValue) -> Callable[[ObjectKey], bool]:
        """Return which identities a viewer may list. Raises Refused where there are none, ApiError."""
        if await self._may_list(viewer, ""):
            return lambda _key: True
        namespaces = sorted({key.namespace for key in self._catalog.identities})
        allowed = await asyncio.gather(*(self._may_list(viewer, namespace) for namespace in namespaces))
        seen = frozenset(namespace for namespace, may in zip(namespaces, allowed, strict=True) if may)
        if not seen:
            raise _refused("This token may not list ServiceIdentities in any namespace that has some.")
        return lambda key: key.namespace in seen

    async def _may_list(self, viewer: SecretValue, namespace: str) -> bool:
        """Tell whether somebody may list the identities of a namespace, or of all (the empty one)."""
        digest = hashlib.sha256(viewer.reveal().encode("utf-8", "surrogatepass")).digest()
        return await self._reads.get((digest, namespace), lambda: self._ask(viewer, namespace))

    async def _ask(self, viewer: SecretValue, namespace: str) -> bool:
        wanted = {"group": "keyferry.dev", "resource": "serviceidentities", "verb": "list", "namespace": namespace}
        text = viewer.reveal()
        if not text or not text.isascii() or not text.isprintable() or " " in text:
            raise _refused("This is no token.")
        try:
            async with self._turns:
                status = await self._client.review(SELF_ACCESS_REVIEWS, {"resourceAttributes": wanted}, token=viewer)
        except ApiError as error:
            if error.status == HTTPStatus.UNAUTHORIZED:
                raise _refused("The cluster does not know this token, or it has lapsed.") from None
            raise
        return status.get("allowed") is True


def _refused(message: str) -> Refused:
    return Refused(
        message,
        code="not_allowed",
        reason=Reason.PROVIDER_NOT_ALLOWED,
        retry=RetryClass.NEEDS_CONFIGURATION,
    )
