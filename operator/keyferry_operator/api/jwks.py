"""The keys that the cluster signs service-account tokens with, as its API server publishes them (OIDC Discovery)."""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

import jwt

from keyferry_operator.errors import ApiError

if TYPE_CHECKING:
    from keyferry_operator.client import KubeClient

log = logging.getLogger(__name__)

CONFIGURATION: Final = "/.well-known/openid-configuration"
KEYS: Final = "/openid/v1/jwks"
"""The API server's own; what the configuration names may be elsewhere, and closed to pods."""
ALGORITHMS: Final = ("RS256", "ES256", "ES384", "ES512")
"""What API servers sign with."""


@dataclass(frozen=True, slots=True)
class KeyTimes:
    """Seconds; the defaults are right for clusters."""

    life: float = 600.0
    """After which the keys are read again, so that one that was withdrawn is not believed for long."""
    pause: float = 10.0
    """Between reads because of a key that is not known: whoever makes tokens up must not have us read all day."""
    unavailable_pause: float = 30.0
    """Until keys that could not be read are asked for again, while none are known."""


DEFAULT_TIMES: Final = KeyTimes()


class KeysUnavailable(Exception):
    """The cluster's keys cannot be had now, or not by us."""


@final
class ClusterKeys:
    """Keeps the keys. A token is good only if one of them signed it."""

    def __init__(self, client: KubeClient, times: KeyTimes = DEFAULT_TIMES) -> None:
        self._client = client
        self._times = times
        self._keys: dict[str, jwt.PyJWK] = {}
        self._issuer = ""
        self._read_at = -math.inf
        self._tried_at = -math.inf
        self._reading: asyncio.Task[None] | None = None

    async def claims(self, token: str, audience: str, leeway: float) -> dict[str, Any]:
        """Return what a token says, signed by the cluster, for ``audience``, and good now.

        Raises jwt.PyJWTError where it is not, KeysUnavailable where that cannot be told.
        """
        key_id = jwt.get_unverified_header(token).get("kid")
        key = await self._key(key_id if isinstance(key_id, str) else "")
        if key.algorithm_name not in ALGORITHMS:
            raise jwt.InvalidAlgorithmError("not an algorithm of the cluster's")
        found: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[key.algorithm_name],
            audience=audience,
            issuer=self._issuer,
            leeway=leeway,
            options={"require": ["exp", "iat", "iss", "aud", "sub"]},
        )
        return found

    async def _key(self, key_id: str) -> jwt.PyJWK:
        now = asyncio.get_running_loop().time()
        unknown = key_id not in self._keys
        if now - self._tried_at > (self._times.pause if self._keys else self._times.unavailable_pause):
            if unknown:
                await asyncio.shield(self._read())
            elif now - self._read_at > self._times.life:
                self._read()  # meanwhile the key that is known is good
        if not self._keys:
            raise KeysUnavailable
        found = self._keys.get(key_id)
        if found is None:
            raise jwt.InvalidTokenError("no key of the cluster's")
        return found

    def _read(self) -> asyncio.Task[None]:
        """Read the keys, once for all who want them; where they cannot be read, those that are known stay."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._fetch(), name="jwks")
        return self._reading

    async def _fetch(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            configuration = await self._client.document(CONFIGURATION)
            published = await self._client.document(KEYS)
            keys = jwt.PyJWKSet.from_dict(published).keys
            self._keys = {key.key_id: key for key in keys if key.key_id}
            self._issuer = str(configuration["issuer"])
            self._read_at = loop.time()
        except ApiError as error:
            log.warning("the cluster's keys for service-account tokens cannot be read: %s", error)
        except (jwt.PyJWTError, KeyError, TypeError) as error:
            log.warning("the cluster's keys for service-account tokens are none: %s", type(error).__name__)
        self._tried_at = loop.time()
