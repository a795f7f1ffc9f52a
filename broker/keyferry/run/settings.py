"""The settings of ``keyferry run``, and their defaults."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from keyferry.run.sources import SecretSettings

if TYPE_CHECKING:
    from keyferry.io.addresses import HostRule


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What a person may set for a broker on one machine."""

    paths: tuple[Path, ...]
    out: Path
    state: Path
    secrets: SecretSettings = field(default_factory=SecretSettings)
    allowed_hosts: tuple[HostRule, ...] = ()
    default_namespace: str = "default"
    page_url: str = ""
    """External address of the approval page; empty where there is none."""


def default_out() -> Path:
    """Return where token files go: ``$XDG_RUNTIME_DIR/keyferry``, else a directory of this user's own."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "keyferry" if runtime else Path(tempfile.gettempdir()) / f"keyferry-{os.getuid()}"


def default_state() -> Path:
    """Return where the private state is: ``$XDG_STATE_HOME/keyferry``, else ``~/.local/state/keyferry``."""
    state = os.environ.get("XDG_STATE_HOME")
    return Path(state) / "keyferry" if state else Path.home() / ".local" / "state" / "keyferry"
