"""The certificate that the broker API is served with, and the authorities by which clients know it.

Either it lies in a directory (a mounted Secret: cert-manager's, the chart's), or the replicas make and rotate one
together, in a Secret of their namespace that each writes over what it read and nothing else.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import logging
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, final

from keyferry.errors import CredentialError, KeyferryError
from keyferry.io.tls import ClientCertificate, build_server_context, present
from keyferry.secret import SecretValue
from keyferry_operator.api.authority import DEFAULT_LIVES, Lives, Serving, advanced
from keyferry_operator.client import SECRETS
from keyferry_operator.errors import ApiError
from keyferry_operator.names import MANAGER, SERVING_SECRET

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence

    from keyferry_operator.client import KubeClient, Object

log = logging.getLogger(__name__)

LOOK: Final = 60.0
"""Seconds between looks whether there is another certificate."""
TRIES: Final = 5
"""Times that a Secret is read again because another replica wrote it first."""


@dataclass(frozen=True, slots=True)
class Material:
    """What is served with."""

    certificate: ClientCertificate
    bundle: str
    """The authorities to trust, in PEM; empty where clients know them anyway."""


class Source(Protocol):
    """Where the certificate comes from."""

    async def current(self) -> Material:
        """Return it as it is to be now. Raises KeyferryError where there is none."""
        ...


class Certificates:
    """Keeps a TLS context up to date, without a connection being dropped for it."""

    def __init__(self, source: Source, *, look: float = LOOK) -> None:
        self._source = source
        self._look = look
        self._material: Material | None = None
        self._context: ssl.SSLContext | None = None
        self.listeners: list[Callable[[str], None]] = []
        """Told of the bundle at the first start and whenever it is another; what they begin must not raise."""

    @property
    def bundle(self) -> str:
        """The authorities to trust, in PEM."""
        return self._material.bundle if self._material is not None else ""

    @property
    def context(self) -> ssl.SSLContext:
        """The context to serve with, the same for good: its certificate is replaced within. Needs ``start``."""
        if self._context is None:
            raise RuntimeError("no certificate was read yet")
        return self._context

    async def start(self) -> None:
        """Have a certificate. Raises KeyferryError."""
        await self.refresh()

    async def run(self) -> None:
        """Look for another certificate until cancelled."""
        while True:
            await asyncio.sleep(self._look * random.uniform(0.8, 1.2))  # noqa: S311 - so that replicas take turns
            try:
                await self.refresh()
            except KeyferryError as error:
                log.warning("the certificate of the broker API stays as it is: %s", error)
            except Exception as error:  # noqa: BLE001 - to serve on with the old one is better than to end
                log.error("unexpected %s while looking for a certificate", type(error).__name__)  # noqa: TRY400

    async def refresh(self) -> bool:
        """Look now; tell whether anything is another. Raises KeyferryError, and then all stays as it was."""
        found = await self._source.current()
        if found == self._material:
            return False
        # Tried apart first: a context whose certificate could not be replaced is lost.
        fresh = build_server_context(found.certificate)
        if self._context is None:
            self._context = fresh
        elif self._material is None or found.certificate != self._material.certificate:
            present(self._context, found.certificate, what="the serving certificate")
            log.info("the broker API is served with another certificate")
        moved = self._material is None or found.bundle != self._material.bundle
        self._material = found
        if moved:
            for listener in self.listeners:
                listener(found.bundle)
        return True


@final
class DirectorySource:
    """``tls.crt``, ``tls.key`` and, where clients need it, ``ca.crt`` in a directory, such as a mounted Secret."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def current(self) -> Material:
        """Read the files. Raises CredentialError."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> Material:
        # The kubelet moves a link to all files at once: resolved first, they are of one version.
        directory = Path(self._directory, "tls.crt").resolve().parent
        try:
            chain, key = (Path(directory, name).read_text("ascii") for name in ("tls.crt", "tls.key"))
            authorities = Path(directory, "ca.crt")
            bundle = authorities.read_text("ascii") if authorities.exists() else ""
        except OSError as error:
            raise CredentialError(f"the certificate in {self._directory} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise CredentialError(f"the certificate in {self._directory} is not PEM") from None
        return Material(ClientCertificate(chain, SecretValue(key)), bundle)


@final
class SecretSource:
    """Makes the certificate, and rotates it, in a Secret that all replicas share."""

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        hosts: Sequence[str],
        *,
        name: str = SERVING_SECRET,
        lives: Lives = DEFAULT_LIVES,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        """``hosts`` are the names and addresses that clients know the server by."""
        self._client = client
        self._namespace = namespace
        self._hosts = tuple(hosts)
        self._name = name
        self._lives = lives
        self._now = now

    async def current(self) -> Material:
        """Read what there is, and write what it is time for. Raises StoreError."""
        for _ in range(TRIES):
            found = await self._client.get(SECRETS, self._namespace, self._name)
            held = self._decoded(found)
            serving = advanced(held, self._hosts, self._now(), self._lives)
            try:
                if serving is not held:
                    await self._write(serving, found)
            except ApiError as error:
                if not (error.conflict or error.not_found):
                    raise
                continue  # another replica was first: what it wrote is as good
            pair = serving.certificate
            return Material(ClientCertificate(pair.certificate, pair.key), serving.bundle)
        raise ApiError(f"Secret {self._namespace}/{self._name} is written by somebody else all the time")

    def _decoded(self, found: Object | None) -> Serving | None:
        if found is None:
            return None
        try:
            data = {name: base64.b64decode(value).decode() for name, value in (found.get("data") or {}).items()}
            return Serving.from_data(data)
        except ValueError:
            log.warning("Secret %s/%s is damaged, so a new certificate is made", self._namespace, self._name)
            return None

    async def _write(self, serving: Serving, found: Object | None) -> None:
        body: Object = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": self._name,
                "namespace": self._namespace,
                "labels": {"app.kubernetes.io/managed-by": MANAGER},
            },
            "type": "kubernetes.io/tls",
            "data": {name: base64.b64encode(text.encode()).decode() for name, text in serving.to_data().items()},
        }
        if found is None:
            await self._client.create(SECRETS, self._namespace, body)
        else:
            body["type"] = found.get("type", body["type"])  # it cannot be changed
            body["metadata"]["uid"] = found["metadata"]["uid"]
            body["metadata"]["resourceVersion"] = found["metadata"]["resourceVersion"]
            await self._client.replace(SECRETS, self._namespace, body)
