"""Where ``keyferry run`` finds credentials: Secret documents beside the resources, a directory, the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from keyferry.errors import CredentialError, Reason, RetryClass
from keyferry.io.threads import in_thread
from keyferry.secret import SecretValue

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Executor
    from pathlib import Path

    from keyferry.engine.credentials import Reference

LARGEST: Final = 1 << 20

SecretKey = tuple[str, str, str]
"""Namespace, name, key."""


@dataclass(frozen=True, slots=True)
class SecretSettings:
    """Where secrets come from beside the resources."""

    directory: Path | None = None
    """``DIR/<namespace>/<name>/<key>``, read afresh each time."""
    environment: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """From (name, key) to the name of an environment variable."""
    service_account_tokens: Mapping[str, Path] = field(default_factory=dict)
    """From an audience to a file that something else keeps fresh."""


class LocalCredentials:
    """Implements ``keyferry.engine.ports.CredentialSource`` on one machine."""

    restricts_hosts = False  # whoever writes the resources owns the secrets as well

    def __init__(self, settings: SecretSettings, executor: Executor) -> None:
        self._settings = settings
        self._executor = executor
        self._secrets: Mapping[SecretKey, bytes] = {}
        self._configs: Mapping[SecretKey, bytes] = {}

    def replace_documents(self, secrets: Mapping[SecretKey, bytes], configs: Mapping[SecretKey, bytes]) -> None:
        """Take over the Secret and ConfigMap documents found under the resource paths."""
        self._secrets = secrets
        self._configs = configs

    async def secret(self, namespace: str, name: str, key: str, hosts: frozenset[str]) -> bytes:  # noqa: ARG002
        """Return one key of a Secret: from the documents, then the directory, then the environment."""
        document = self._secrets.get((namespace, name, key))
        if document is not None:
            return document
        if self._settings.directory is not None:
            path = self._settings.directory / namespace / name / key
            data = await self._read(path)
            if data is not None:
                return data
        variable = self._settings.environment.get((name, key))
        if variable is not None and variable in os.environ:
            return os.environb[variable.encode()]
        raise self._missing(namespace, name, key, variable)

    async def config(self, namespace: str, name: str, key: str) -> bytes:
        """Return one key of a ConfigMap document."""
        document = self._configs.get((namespace, name, key))
        if document is None:
            raise CredentialError(
                f"ConfigMap {namespace}/{name} with key {key!r} is not among the resource files. Add it as a document"
                " (kind: ConfigMap)."
            )
        return document

    async def service_account_token(
        self,
        namespace: str,
        name: str,
        audience: str,
        expiration: float,  # noqa: ARG002 - whatever keeps the file decides
        hosts: frozenset[str],  # noqa: ARG002 - the files are the user's own
    ) -> SecretValue:
        """Return the token in the file that was named for the audience."""
        path = self._settings.service_account_tokens.get(audience)
        if path is None:
            raise CredentialError(
                f"No service account token for audience {audience!r} (ServiceAccount {namespace}/{name}). Outside a"
                f" cluster, name the file that holds one: --service-account-token {audience}=FILE."
            )
        data = await self._read(path)
        if not data or not data.strip():
            raise CredentialError(
                f"The service account token file {path} is missing or empty. Keyferry looks again in a while.",
                retry=RetryClass.SUSPICIOUS,
            )
        return SecretValue(data.decode("ascii", "replace").strip())

    def fingerprints(self, references: frozenset[Reference]) -> dict[Reference, tuple[object, ...]]:
        """Return, for each Secret or ConfigMap, something that changes when its content does. Blocks."""
        found: dict[Reference, tuple[object, ...]] = {}
        by_place: dict[tuple[str, str], list[tuple[str, bytes]]] = {}
        for documents in (self._secrets, self._configs):
            for (namespace, name, key), data in documents.items():
                by_place.setdefault((namespace, name), []).append((key, data))
        for reference in references:
            place = (reference.namespace, reference.name)
            documents_part = tuple(sorted((key, hash(data)) for key, data in by_place.get(place, ())))
            found[reference] = (*documents_part, *self._directory_part(reference))
        return found

    def _directory_part(self, reference: Reference) -> list[tuple[object, ...]]:
        if self._settings.directory is None:
            return []
        found: list[tuple[object, ...]] = []
        try:
            with os.scandir(self._settings.directory / reference.namespace / reference.name) as entries:
                for entry in entries:
                    status = entry.stat()
                    found.append((entry.name, status.st_mtime_ns, status.st_size, status.st_ino))
        except OSError:
            return []
        return sorted(found, key=lambda item: str(item[0]))

    async def _read(self, path: Path) -> bytes | None:
        def work() -> bytes | None:
            try:
                with path.open("rb") as file:
                    return file.read(LARGEST)
            except (FileNotFoundError, NotADirectoryError):
                return None
            except OSError as error:
                raise CredentialError(
                    f"{path} cannot be read: {os.strerror(error.errno or 0)}. Check its owner and mode."
                ) from None

        return await in_thread(self._executor, work)

    def _missing(self, namespace: str, name: str, key: str, variable: str | None) -> CredentialError:
        places = ["a Secret document beside the resources"]
        if self._settings.directory is not None:
            places.append(f"{self._settings.directory}/{namespace}/{name}/{key}")
        places.append(f"environment variable {variable}" if variable else f"--secret-env {name}/{key}=VARIABLE")
        return CredentialError(
            f"Secret {namespace}/{name} with key {key!r} is nowhere to be found. Looked for, or possible:"
            f" {'; '.join(places)}.",
            reason=Reason.SECRET_NOT_FOUND,
        )
