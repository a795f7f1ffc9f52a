"""Who asks: the pod that a projected service-account token is bound to, and whether that pod is alive.

The token is verified with the cluster's keys or, where those cannot be read, by a TokenReview. Either way the pod and
its service account are looked at: a token outlives the pod that it was given to, and both may be made again under the
same name.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections import OrderedDict
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, final

import jwt

from keyferry.errors import KeyferryError
from keyferry.wire import AUDIENCE, ProblemReason
from keyferry_operator.api.answers import Denied, unavailable
from keyferry_operator.api.jwks import KeysUnavailable
from keyferry_operator.client import TOKEN_REVIEWS
from keyferry_operator.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import web

    from keyferry_operator.api.jwks import ClusterKeys
    from keyferry_operator.api.pods import LivePods
    from keyferry_operator.client import KubeClient

log = logging.getLogger(__name__)

LONGEST: Final = 8192
"""Characters of a token."""
LEEWAY: Final = 10.0
"""Seconds by which our clock may differ from the API server's."""
VERDICT_LIFE: Final = 10.0
"""Seconds for which the API server's word on a token is believed (TokenReview)."""
MOST_VERDICTS: Final = 10_000
TOLD_EVERY: Final = 60.0
"""Seconds between two words in the log that nobody can be identified."""
_USER: Final = "system:serviceaccount:"
_POD_NAME: Final = "authentication.kubernetes.io/pod-name"
_POD_UID: Final = "authentication.kubernetes.io/pod-uid"
_CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="keyferry"'}


@dataclass(frozen=True, slots=True)
class Caller:
    """What a token says of its bearer."""

    namespace: str
    service_account: str
    service_account_uid: str
    pod: str
    pod_uid: str


@final
class Callers:
    """Tells who asks. Its refusals do not say why: whoever has no good token learns nothing."""

    def __init__(self, client: KubeClient, keys: ClusterKeys, pods: LivePods) -> None:
        self._client = client
        self._keys = keys
        self._pods = pods
        self._reviewed: OrderedDict[bytes, tuple[float, Caller | None]] = OrderedDict()
        """By digest of the token: until when (monotonic) the API server's word on it is believed."""
        self._told_at = -math.inf

    async def identify(self, request: web.BaseRequest) -> Caller:
        """Return the live pod that asks. Raises Denied: 401, or 503 where it cannot be told now."""
        token = bearer(request)
        try:
            caller = await self._verify(token)
            if caller is None or not await self._pods.is_alive(caller, request.remote or ""):
                raise unauthenticated()
        except KeyferryError as error:
            self._tell(error)
            raise unavailable("the API server cannot be asked just now who you are", _retry_after(error)) from None
        return caller

    def _tell(self, error: KeyferryError) -> None:
        """Log why pods cannot be served: they are not told, and it may be a right that is missing."""
        now = asyncio.get_running_loop().time()
        if now - self._told_at >= TOLD_EVERY:
            self._told_at = now
            log.warning("it cannot be told which pods ask for tokens, so they wait: %s", error)

    async def _verify(self, token: str) -> Caller | None:
        """Return whose a token is; None where it is not good. Raises KeyferryError."""
        try:
            claims = await self._keys.claims(token, AUDIENCE, LEEWAY)
        except KeysUnavailable:
            return await self._review(token)
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            return None
        return _caller(claims)

    async def _review(self, token: str) -> Caller | None:
        """Ask the API server about a token, once in a while for each."""
        digest, now = hashlib.sha256(token.encode()).digest(), asyncio.get_running_loop().time()
        until, caller = self._reviewed.get(digest, (0.0, None))
        if now < until:
            return caller
        claimed = _claimed(token)
        caller = None
        if claimed is not None:  # else it is not worth asking
            status = await self._client.review(TOKEN_REVIEWS, {"token": token, "audiences": [AUDIENCE]})
            caller = claimed if _confirms(status, claimed) else None
        self._reviewed[digest] = (now + VERDICT_LIFE, caller)
        self._reviewed.move_to_end(digest)
        while len(self._reviewed) > MOST_VERDICTS:
            self._reviewed.popitem(last=False)
        return caller


def bearer(request: web.BaseRequest) -> str:
    """Return the token that a request presents. Raises Denied."""
    headers = request.headers.getall("Authorization", [])
    scheme, _, token = headers[0].partition(" ") if len(headers) == 1 else ("", "", "")
    token = token.strip()
    if scheme.lower() != "bearer" or not token or len(token) > LONGEST or not token.isascii():
        raise unauthenticated()
    return token


def unauthenticated() -> Denied:
    """Return the one refusal of whoever presents no good token."""
    return Denied(
        HTTPStatus.UNAUTHORIZED,
        ProblemReason.UNAUTHENTICATED,
        f"present a token of a running pod's service account, bound to that pod, for the audience {AUDIENCE}",
        headers=_CHALLENGE,
    )


def _caller(claims: Mapping[str, Any]) -> Caller | None:
    """Return what the claims of a bound token say; None where it is bound to no pod."""
    private = claims.get("kubernetes.io")
    if not isinstance(private, dict):
        return None
    account, pod = private.get("serviceaccount"), private.get("pod")
    if not isinstance(account, dict) or not isinstance(pod, dict):
        return None
    parts = [private.get("namespace"), *(each.get(name) for each in (account, pod) for name in ("name", "uid"))]
    if not all(isinstance(part, str) and part for part in parts):
        return None
    caller = Caller(*map(str, parts))
    return caller if claims.get("sub") == f"{_USER}{caller.namespace}:{caller.service_account}" else None


def _claimed(token: str) -> Caller | None:
    """Return what a token says of itself, which nobody has confirmed."""
    try:
        claims = jwt.decode(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        return None
    audiences = claims.get("aud")
    return _caller(claims) if AUDIENCE in (audiences if isinstance(audiences, list) else [audiences]) else None


def _confirms(status: Mapping[str, Any], claimed: Caller) -> bool:
    """Tell whether a TokenReview says the same."""
    user = status.get("user") or {}
    extra = user.get("extra") or {}
    said = (user.get("username"), user.get("uid"), extra.get(_POD_NAME), extra.get(_POD_UID))
    account = f"{_USER}{claimed.namespace}:{claimed.service_account}"
    wanted = (account, claimed.service_account_uid, [claimed.pod], [claimed.pod_uid])
    return status.get("authenticated") is True and AUDIENCE in (status.get("audiences") or ()) and said == wanted


def _retry_after(error: KeyferryError) -> float:
    return max(2.0, (error.retry_after or 0.0) if isinstance(error, ApiError) else 0.0)
