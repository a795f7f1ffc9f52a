"""``STATE/last-run.json``: with what ``keyferry run`` was last started, so that the other commands need not be told."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from keyferry.errors import PublishError
from keyferry.io.addresses import HostRule
from keyferry.io.files import Folder
from keyferry.run.settings import RunSettings
from keyferry.run.sources import SecretSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME: Final = "last-run.json"


@dataclass(frozen=True, slots=True)
class LastRun:
    """Options as they were given: paths and names, no secret."""

    resources: tuple[Path, ...] = ()
    out: Path | None = None
    secrets: Path | None = None
    secret_env: Mapping[tuple[str, str], str] = field(default_factory=dict)
    service_account_tokens: Mapping[str, Path] = field(default_factory=dict)
    allowed_hosts: tuple[HostRule, ...] = ()
    namespace: str | None = None

    @classmethod
    def of(cls, settings: RunSettings) -> LastRun:
        """Return what to remember of a run."""
        return cls(
            resources=tuple(path.absolute() for path in settings.paths),
            out=settings.out.absolute(),
            secrets=settings.secrets.directory.absolute() if settings.secrets.directory is not None else None,
            secret_env=settings.secrets.environment,
            service_account_tokens={
                audience: path.absolute() for audience, path in settings.secrets.service_account_tokens.items()
            },
            allowed_hosts=settings.allowed_hosts,
            namespace=settings.default_namespace,
        )

    @classmethod
    def read(cls, state: Path) -> LastRun:
        """Return what was remembered; a file that is missing or damaged is as good as nothing."""
        try:
            data: dict[str, Any] = json.loads((state / NAME).read_bytes())
            return cls(
                resources=tuple(Path(path) for path in data["resources"]),
                out=Path(data["out"]),
                secrets=Path(data["secrets"]) if data["secrets"] is not None else None,
                secret_env={(item["name"], item["key"]): item["variable"] for item in data["secretEnv"]},
                service_account_tokens={name: Path(path) for name, path in data["serviceAccountTokens"].items()},
                allowed_hosts=tuple(HostRule.parse(host) for host in data["allowedHosts"]),
                namespace=str(data["namespace"]),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls()

    def write(self, state: Path) -> None:
        """Remember it. Raises PublishError when the disk does not take it."""
        data = {
            "resources": [str(path) for path in self.resources],
            "out": str(self.out),
            "secrets": str(self.secrets) if self.secrets is not None else None,
            "secretEnv": [
                {"name": name, "key": key, "variable": variable} for (name, key), variable in self.secret_env.items()
            ],
            "serviceAccountTokens": {name: str(path) for name, path in self.service_account_tokens.items()},
            "allowedHosts": [str(rule) for rule in self.allowed_hosts],
            "namespace": self.namespace,
        }
        with Folder.open(state) as folder:
            folder.write(NAME, json.dumps(data, indent=2).encode() + b"\n")


def remember(settings: RunSettings) -> str:
    """Remember a run; return what went wrong with that, which is no reason not to run."""
    try:
        LastRun.of(settings).write(settings.state)
    except PublishError as error:
        return error.message
    return ""


def merged(given: LastRun, last: LastRun, *, state: Path, out: Path) -> RunSettings:
    """Return settings in which every option that was given counts, else the last run's; ``out`` is the default."""
    return RunSettings(
        paths=given.resources or last.resources,
        out=given.out or last.out or out,
        state=state,
        secrets=SecretSettings(
            directory=given.secrets or last.secrets,
            environment={**last.secret_env, **given.secret_env},
            service_account_tokens={**last.service_account_tokens, **given.service_account_tokens},
        ),
        allowed_hosts=tuple(dict.fromkeys((*given.allowed_hosts, *last.allowed_hosts))),
        default_namespace=given.namespace or last.namespace or "default",
    )
