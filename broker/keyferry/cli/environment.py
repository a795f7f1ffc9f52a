"""The environment of a command that ``keyferry exec`` starts: where its token files are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from keyferry.cli.exits import CommandError, ExitCode
from keyferry.errors import PublishError
from keyferry.io.files import read_file
from keyferry.render.tiled import API_KEY_FILE, CACHE_FOLDER
from keyferry.spec.target import FileFormat

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_LINE: Final = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)='(?P<value>[^']*)'")


def environment(inherited: Mapping[str, str], places: Sequence[Mapping[str, Any]], *, with_env: bool) -> dict[str, str]:
    """Return ``inherited`` with what the identities add; what is set there stays.

    ``places`` are as ``keyferry.run.control.place`` returns them, the first identity first, with the variables that
    ``keyferry.cli.client_environment`` added. ``with_env`` adds the
    variables in files of format Env, as they are now. Raises CommandError where two identities need the same variable.
    """
    added: dict[str, str] = {"KEYFERRY_DIR": str(Path(places[0]["directory"]).parent)}
    for file in places[0]["files"]:
        if file["format"] == FileFormat.TOKEN.value:
            added["BEARER_TOKEN_FILE"] = str(Path(places[0]["directory"]) / str(file["name"]))
            break
    owners: dict[str, str] = {}
    for place in places:
        directory = Path(place["directory"])
        clients: Mapping[str, str] = place.get("environment", {})
        for name, value in (*clients.items(), *_of_identity(directory, place["files"], with_env=with_env)):
            if owners.setdefault(name, directory.name) != directory.name and name not in inherited:
                raise CommandError(
                    f"{owners[name]} and {directory.name} both need the variable {name}: run one command for each,"
                    f" or set {name} yourself",
                    ExitCode.INVALID,
                )
            added.setdefault(name, value)
    return {**added, **inherited}


def _of_identity(directory: Path, files: Sequence[Mapping[str, Any]], *, with_env: bool) -> Iterator[tuple[str, str]]:
    for file in files:
        if file["format"] == FileFormat.TILED.value:
            key = _read(directory / API_KEY_FILE)
            yield ("TILED_API_KEY", key) if key else ("TILED_CACHE_DIR", str(directory / CACHE_FOLDER))
        elif with_env and file["format"] == FileFormat.ENV.value:
            for line in _read(directory / str(file["name"])).splitlines():
                match = _LINE.fullmatch(line)
                if match is not None:
                    yield match["name"], match["value"]


def _read(path: Path) -> str:
    try:
        return (read_file(path) or b"").decode()
    except PublishError as error:
        raise CommandError(error.message, ExitCode.FAILED) from error
