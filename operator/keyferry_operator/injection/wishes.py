"""What a pod's annotations ask for: read once, all of it checked, before anything of the pod is looked at."""

from __future__ import annotations

import difflib
import posixpath
import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from keyferry.spec.common import NAME_PATTERN
from keyferry.spec.durations import format_duration, parse_duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DOMAIN: Final = "keyferry.dev/"
INJECT: Final = f"{DOMAIN}inject"
MODE: Final = f"{DOMAIN}mode"
MINIMUM: Final = f"{DOMAIN}minimum-remaining"
CONTAINERS: Final = f"{DOMAIN}containers"
CLIENTS: Final = f"{DOMAIN}clients"
HOME: Final = f"{DOMAIN}home"
PORT: Final = f"{DOMAIN}port"
FALLBACK: Final = f"{DOMAIN}fallback"
ASKED: Final = (INJECT, MODE, MINIMUM, CONTAINERS, CLIENTS, HOME, PORT, FALLBACK)

INJECTED: Final = f"{DOMAIN}injected"
"""Ours: the containers that were given the files. It is there once a pod was injected, and only then."""
OWN: Final = (INJECTED, f"{DOMAIN}touched")

DEFAULT_PORT: Final = 7531
FIRST_PORT, LAST_PORT = 1024, 65535
"""The sidecar is nobody special, so ports below are not open to it."""
MOST_IDENTITIES: Final = 16
LONGEST_NAME: Final = 63
LONGEST_PATH: Final = 4096
_NAME: Final = re.compile(NAME_PATTERN.replace("$", r"\Z"))
_PATH: Final = re.compile(r"/[^\x00-\x1f\x7f:]*\Z")


class Refused(Exception):
    """The pod cannot be what its annotations say; the message is one sentence for the person who wrote them."""


class Mode(Enum):
    """How the files get into the pod."""

    SIDECAR = "Sidecar"
    SECRET = "Secret"  # noqa: S105 - a choice, not a secret


class Client(Enum):
    """Programs whose environment can be set up."""

    BEARER = "bearer"
    TILED = "tiled"
    AIOD = "aiod"
    LABARCHIVES = "labarchives"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the annotations say."""

    identities: tuple[str, ...]
    mode: Mode = Mode.SIDECAR
    minimum_remaining: str | None = None
    """A duration, as the contract writes them."""
    containers: tuple[str, ...] | None = None
    """None: all that start after the sidecar, but other injectors'."""
    clients: tuple[Client, ...] | None = None
    """None: whatever the identities' files are for."""
    home: str | None = None
    port: int | None = None
    fallback: tuple[str, ...] = ()
    """Identities whose Secrets the sidecar is given as well, for when nobody can be asked."""


def read_wishes(annotations: Mapping[str, str]) -> Wishes | None:
    """Return what a pod asks for; None where it asks for nothing.

    Raises:
        Refused: an annotation cannot be understood, or is none of ours though it begins so.

    """
    _check_names(annotations)
    if INJECT not in annotations:
        return None
    wishes = Wishes(
        identities=_identities(annotations[INJECT]),
        mode=_mode(annotations.get(MODE)),
        minimum_remaining=_minimum(annotations.get(MINIMUM)),
        containers=_names(CONTAINERS, annotations[CONTAINERS]) if CONTAINERS in annotations else None,
        clients=_clients(annotations.get(CLIENTS)),
        home=_home(annotations.get(HOME)),
        port=_port(annotations.get(PORT)),
        fallback=_names(FALLBACK, annotations[FALLBACK]) if FALLBACK in annotations else (),
    )
    for name in wishes.fallback:
        if name not in wishes.identities:
            raise Refused(
                f"{FALLBACK} names {name}, which {INJECT} does not: name it there, too, or leave it out here."
            )
    if wishes.mode is Mode.SECRET:
        for name in (MINIMUM, PORT, FALLBACK):
            if name in annotations:
                raise Refused(f"{name} is the sidecar's, and {MODE} is Secret: leave one of the two out.")
    if wishes.clients is not None and Client.AIOD in wishes.clients and wishes.home is None:
        raise Refused(
            f"{CLIENTS} names aiod, whose files must be in .aiod of the home directory: say which directory that is,"
            f" such as {HOME}: /home/app."
        )
    return wishes


def _check_names(annotations: Mapping[str, str]) -> None:
    """Refuse what a person may have mistyped; without ``inject``, only what looks like it."""
    known = (*ASKED, *OWN)
    for name in annotations:
        if not name.startswith(DOMAIN) or name in known:
            continue
        ends = [each.removeprefix(DOMAIN) for each in ASKED]
        meant = [DOMAIN + each for each in difflib.get_close_matches(name.removeprefix(DOMAIN), ends, n=1, cutoff=0.55)]
        if INJECT in annotations or meant == [INJECT]:
            raise Refused(
                f"{name} is no annotation that Keyferry knows on a pod"
                + (f": did you mean {meant[0]}?" if meant else f"; it knows {', '.join(ASKED)}.")
            )


def words(text: str) -> tuple[str, ...]:
    """Split a list as annotations write them: by commas, with blanks where somebody likes them."""
    return tuple(word for word in (part.strip() for part in text.split(",")) if word)


def _names(annotation: str, text: str) -> tuple[str, ...]:
    found = words(text)
    if not found:
        raise Refused(f"{annotation} is empty: name at least one, or leave the annotation out.")
    for name in found:
        if found.count(name) > 1:
            raise Refused(f"{annotation} names {name} twice.")
        if len(name) > LONGEST_NAME or not _NAME.match(name):
            raise Refused(
                f"{annotation}: {shown(name)} is no name (lower-case letters, digits, '-' and '.', {LONGEST_NAME} at"
                " most); several names are separated by commas."
            )
    return found


def _identities(text: str) -> tuple[str, ...]:
    found = _names(INJECT, text)
    if len(found) > MOST_IDENTITIES:
        raise Refused(f"{INJECT} names {len(found)} identities; {MOST_IDENTITIES} are the most for one pod.")
    return found


def _mode(text: str | None) -> Mode:
    return Mode.SIDECAR if text is None else Mode(_chosen(MODE, text.strip(), [mode.value for mode in Mode]))


def _clients(text: str | None) -> tuple[Client, ...] | None:
    if text is None:
        return None
    choices = [client.value for client in Client]
    return tuple(Client(_chosen(CLIENTS, name, choices)) for name in _names(CLIENTS, text))


def _chosen(annotation: str, value: str, choices: Iterable[str]) -> str:
    known = list(choices)
    if value in known:
        return value
    lower = {each.lower(): each for each in known}
    meant = difflib.get_close_matches(value.lower(), lower, n=1, cutoff=0.6)
    hint = f"; did you mean {lower[meant[0]]}?" if meant else "."
    raise Refused(f"{annotation}: {shown(value)} is none of {', '.join(known)}{hint}")


def _minimum(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return format_duration(parse_duration(text.strip()))
    except ValueError as error:
        raise Refused(f"{MINIMUM} {error}.") from None


def _home(text: str | None) -> str | None:
    if text is None:
        return None
    path = text.strip()
    if len(path) > LONGEST_PATH or not _PATH.match(path) or ".." in path.split("/"):
        raise Refused(f"{HOME} must be an absolute path without '..' and ':', such as /home/app.")
    return "/" + posixpath.normpath(path).lstrip("/")


def _port(text: str | None) -> int | None:
    if text is None:
        return None
    number = text.strip()
    # isdecimal() alone also takes digits of other scripts.
    if not (number.isascii() and number.isdecimal() and len(number) <= len(str(LAST_PORT))):
        raise Refused(f'{PORT} must be a port number in quotes, such as "{DEFAULT_PORT}".')
    if not FIRST_PORT <= int(number) <= LAST_PORT:
        raise Refused(f"{PORT} must be from {FIRST_PORT} to {LAST_PORT}.")
    return int(number)


def shown(text: str) -> str:
    """Quote what somebody wrote, shortened, so that it cannot do harm in a message."""
    return repr(text if len(text) <= LONGEST_NAME else f"{text[:LONGEST_NAME]}…")
