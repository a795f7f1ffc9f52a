"""What ``keyferry exec`` gives clients that need an endpoint: its URL and a placeholder, as variables and as files."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

from keyferry.cli.exits import CommandError, ExitCode
from keyferry.cli.options import complain
from keyferry.errors import PublishError
from keyferry.io.files import Folder
from keyferry.render import ENDPOINT_FORMATS, Endpoint
from keyferry.render.aiod import COMMENT, FOLDER, aiod_files
from keyferry.render.labarchives import labarchives_variables
from keyferry.run.stored_token import read_record
from keyferry.spec.target import FileFormat
from keyferry.web.presented import ACCESS_KEY_ID, new_placeholder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from keyferry.cli.sessions import Session
    from keyferry.model import ObjectKey
    from keyferry.run.settings import RunSettings

CHOSEN: Final = ("API_URL", "ACCESS_KEYID", "ACCESS_PWD")
"""Variables of LabArchives' client that only make sense together."""


class ClientEnvironment:
    """Serves the endpoints of identities while in ``within``, where one of their formats needs them."""

    def __init__(
        self, settings: RunSettings, keys: Sequence[ObjectKey], session: Callable[[], Session], home: Path | None
    ) -> None:
        """``home`` is the directory that the command gets as ``HOME``."""
        self._settings = settings
        self._keys = keys
        self._session = session
        self._home = home

    @contextlib.asynccontextmanager
    async def within(self, places: Sequence[dict[str, Any]], inherited: Mapping[str, str]) -> AsyncIterator[None]:
        """Add to each place the variables of its clients (``environment``). Raises CommandError, KeyferryError."""
        wanted = {file["format"] for place in places for file in place["files"]}
        if not wanted & ENDPOINT_FORMATS:
            yield
            return
        if self._home is not None and sum(_has(place, FileFormat.AIOD) for place in places) > 1:
            raise CommandError(
                "the AI-on-Demand client knows one login: run one command for each identity of format AIoD",
                ExitCode.INVALID,
            )
        from keyferry.cli.endpoints import SessionSource, loopback  # noqa: PLC0415 - a server is slow to import

        sources = {
            key.name: SessionSource(self._session, self._settings.state, key, new_placeholder()) for key in self._keys
        }
        async with loopback(self._settings, sources.get) as server:
            with contextlib.ExitStack() as stack:
                for key, place in zip(self._keys, places, strict=True):
                    placeholder = sources[key.name].placeholder
                    endpoint = Endpoint(f"{server.url}/{key.name}", placeholder, ACCESS_KEY_ID)
                    place["environment"] = await self._set_up(key, place["files"], endpoint, inherited, stack)
                yield

    async def _set_up(
        self,
        key: ObjectKey,
        files: Sequence[Mapping[str, Any]],
        endpoint: Endpoint,
        inherited: Mapping[str, str],
        stack: contextlib.ExitStack,
    ) -> dict[str, str]:
        variables: dict[str, str] = {}
        for file in files:
            if file["format"] == FileFormat.LABARCHIVES:
                own = [name for name in CHOSEN if name in inherited]
                if own:
                    complain(f"{', '.join(own)} is set already, so the command does not use the endpoint of {key}")
                    continue
                record = await asyncio.to_thread(read_record, self._settings.state, key)
                email = record.token.email if record is not None and record.token is not None else ""
                variables |= labarchives_variables(endpoint, email)
            elif file["format"] == FileFormat.AIOD and self._home is not None:
                stack.enter_context(_aiod_home(self._home, aiod_files(endpoint, file.get("apiServer"))))
            elif file["format"] == FileFormat.AIOD:
                complain(
                    f"the AI-on-Demand client looks in $HOME/.aiod alone: name the directory that is to be HOME for the"
                    f" command (--home DIR), or it will not be logged in as {key}"
                )
        return variables


def _has(place: Mapping[str, Any], wanted: FileFormat) -> bool:
    return any(file["format"] == wanted for file in place["files"])


@contextlib.contextmanager
def _aiod_home(home: Path, files: Mapping[str, bytes]) -> Iterator[None]:
    """Write the client's files while the command lasts; somebody's own are never touched. Raises CommandError."""
    try:
        with Folder.open(home / FOLDER) as folder:
            for name in files:
                present = folder.read(name)
                if present is not None and not present.startswith(COMMENT.encode()):
                    raise CommandError(
                        f"{home / FOLDER / name} is not Keyferry's: name another --home, or move it away",
                        ExitCode.INVALID,
                    )
            for name, data in files.items():
                folder.write(name, data)
            try:
                yield
            finally:
                for name, data in files.items():
                    if folder.read(name) == data:
                        folder.remove(name)
    except PublishError as error:
        raise CommandError(error.message, ExitCode.FAILED) from error
