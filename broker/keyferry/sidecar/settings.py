"""The command line of the sidecar, which the webhook writes and nobody types."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keyferry.spec.durations import parse_duration
from keyferry.web.arguments import Parser, UsageError
from keyferry.wire import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PORT: Final = 7531
CLIENTS: Final = ("bearer", "tiled", "aiod", "labarchives")
ENDPOINT_CLIENTS: Final = frozenset({"aiod", "labarchives"})
"""Clients that ask a loopback endpoint."""
_NAME: Final = re.compile(r"[a-z0-9](?:[-.a-z0-9]{0,251}[a-z0-9])?")
_LONGEST_PORT: Final = 65535


@dataclass(frozen=True, slots=True)
class SidecarSettings:
    """What a sidecar is told. Durations are seconds."""

    broker: str
    authorities: Path | None
    token: Path
    namespace: str
    names: tuple[str, ...]
    directory: Path
    port: int
    clients: frozenset[str]
    minimum: float
    spread: float
    fallbacks: Mapping[str, Path]
    allowed_hosts: tuple[str, ...]

    @property
    def endpoints(self) -> bool:
        """Tell whether any client of the pod asks a loopback endpoint."""
        return bool(self.clients & ENDPOINT_CLIENTS)


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    made = Parser(
        prog="keyferry sidecar",
        description="Keep the token files and loopback endpoints of one pod fresh, from the broker API.",
        epilog="`keyferry sidecar --check [--dir DIR]` is the probe: 0 while the containers may run.",
    )
    made.add_argument("names", nargs="+", metavar="NAME", help="ServiceIdentities of the pod's namespace")
    made.add_argument("--broker", required=True, metavar="URL", help="the broker API: https://HOST[:PORT]")
    made.add_argument("--ca", type=Path, metavar="FILE", help="certificates to trust instead of the system's")
    made.add_argument("--token", type=Path, required=True, metavar="FILE", help="the pod's token, of audience keyferry")
    made.add_argument("--namespace", required=True, metavar="NS", help="the pod's namespace")
    made.add_argument("--dir", type=Path, default=Path(ROOT), metavar="DIR", help=f"where files go (default: {ROOT})")
    made.add_argument("--port", type=_port, default=PORT, metavar="N", help=f"loopback port (default: {PORT})")
    made.add_argument("--clients", type=_clients, default=frozenset(), metavar="A,B", help=", ".join(CLIENTS))
    made.add_argument(
        "--minimum-remaining", type=_duration, default=0.0, metavar="DUR", help="containers wait for tokens this good"
    )
    made.add_argument(
        "--fallback", type=_fallback, action="append", default=[], metavar="NAME=DIR", help="a mounted Secret"
    )
    made.add_argument(
        "--spread", type=_duration, default=10.0, metavar="DUR", help="time over which sidecars return to a broker"
    )
    made.add_argument(
        "--allow-host", action="append", default=[], metavar="HOST[:PORT]", help="a private LabArchives region"
    )
    return made


def parse(arguments: Sequence[str]) -> SidecarSettings:
    """Read the command line. Raises UsageError, or SystemExit where help was asked for."""
    found = parser().parse_args(arguments)
    names = tuple(dict.fromkeys(found.names))
    wrong = [name for name in (*names, found.namespace) if not _NAME.fullmatch(name)]
    if wrong:
        raise UsageError(f"{wrong[0]!r} cannot be a name")
    fallbacks = dict(found.fallback)
    if not fallbacks.keys() <= set(names):
        raise UsageError("--fallback is for an identity that is named")
    return SidecarSettings(
        broker=found.broker,
        authorities=found.ca,
        token=found.token,
        namespace=found.namespace,
        names=names,
        directory=found.dir,
        port=found.port,
        clients=found.clients,
        minimum=found.minimum_remaining,
        spread=found.spread,
        fallbacks=fallbacks,
        allowed_hosts=tuple(found.allow_host),
    )


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 0 < int(text) <= _LONGEST_PORT:
        raise argparse.ArgumentTypeError("must be a port, 1 to 65535")
    return int(text)


def _clients(text: str) -> frozenset[str]:
    clients = frozenset(filter(None, (word.strip() for word in text.split(","))))
    if not clients <= set(CLIENTS):
        raise argparse.ArgumentTypeError(f"must be some of {', '.join(CLIENTS)}")
    return clients


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _fallback(text: str) -> tuple[str, Path]:
    name, equals, directory = text.partition("=")
    if not equals or not directory:
        raise argparse.ArgumentTypeError("must be NAME=DIR")
    return name, Path(directory)
