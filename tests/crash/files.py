"""The scene of `keyferry run`: identities whose resources, credentials, state and tokens are files of one directory."""

from __future__ import annotations

import json
from collections import defaultdict
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.crash.scene import Identity, Scene
from tests.crash.watcher import Watcher
from tests.crash.worker import Order
from tests.support.issuer import FaultIssuer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping
    from pathlib import Path

    from keyferry.demo.refresh_tokens import RefreshPolicy
    from tests.crash.zygote import Broker, Zygote


class FileScene(Scene):
    """The directories of one broker, and the identities that it looks after."""

    def __init__(self, base: Path, zygote: Zygote, identities: Iterable[Identity]) -> None:
        super().__init__(base.name, identities)
        self.base = base
        self._zygote = zygote
        self.page_url = ""
        self._read = 0
        self._diary: list[dict[str, Any]] = []
        self._statuses: defaultdict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
        base.mkdir(parents=True)
        self.set_up()

    def declare(self) -> None:
        temporary = self.base / "resources.new"
        temporary.write_text("---".join(identity.document() for identity in self.identities))
        temporary.replace(self.base / "resources.yaml")

    def give(self, identity: Identity, key: str, value: str) -> None:
        directory = self.base / "secrets" / "default" / identity.name
        directory.mkdir(parents=True, exist_ok=True)
        temporary = directory / f"{key}.new"
        temporary.write_text(value)
        temporary.replace(directory / key)

    def directory(self, identity: Identity) -> Path:
        return self.base / "out" / "default" / identity.name

    def watch(self, watcher: Watcher) -> None:
        for identity in self.identities:
            watcher.add(self.directory(identity))

    def start(self, *, step: str = "", passing: int = 1, change: int = 0) -> Broker:
        """Start a broker that dies where it is told to: at a step, or before a change of the file system."""
        broker = self._zygote.run(Order(str(self.base), step, passing, change, page_url=self.page_url))
        self.brokers.append(broker)
        return broker

    # --- what is known ------------------------------------------------------------------------------------------------

    def diary(self) -> list[dict[str, Any]]:
        """Return all that the brokers wrote down; a line that a kill cut short is not there yet."""
        try:
            with (self.base / "diary").open("rb") as file:
                file.seek(self._read)
                data = file.read()
        except FileNotFoundError:
            return self._diary
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in map(json.loads, whole.splitlines()):
            self._diary.append(line)
            if line["kind"] == "status":
                self._statuses[line["pid"], line["name"]].append(line)
        return self._diary

    def statuses(self, identity: Identity) -> list[dict[str, Any]]:
        self.diary()
        return self._statuses[self.brokers[-1].pid, identity.name]

    def record(self, identity: Identity) -> dict[str, Any]:
        try:
            data = (self.base / "state" / "records" / "default" / f"{identity.name}.json").read_bytes()
        except FileNotFoundError:
            return {}
        record: dict[str, Any] = json.loads(data)["record"]
        return record

    def published(self, identity: Identity) -> tuple[bytes, bytes]:
        directory = self.directory(identity)
        return (directory / "token").read_bytes(), (directory / "token.json").read_bytes()

    def attempts(self) -> Mapping[str, Mapping[str, int]]:
        attempts: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for line in self.diary():
            if line["kind"] == "claim":
                attempts[line["digest"]][line["attempt_id"]] = line["attempt"]
        return attempts

    def escrowed(self) -> Mapping[str, str]:
        kinds = {"escrowed", "found"}
        return {line["token"]: line["attempt_id"] for line in self.diary() if line["kind"] in kinds}

    def rescued(self) -> int:
        found = {line["attempt_id"] for line in self.diary() if line["kind"] == "found"}
        return len(found & {attempt_id for claims in self.attempts().values() for attempt_id in claims})

    def key(self) -> bytes:
        return bytes.fromhex(json.loads((self.base / "state" / "identity.json").read_bytes())["key"])

    def litter(self) -> list[str]:
        return [str(path) for path in (self.base / "state").rglob(".keyferry-tmp-*")]

    def last_words(self) -> str:
        return str(self.diary()[-4:])


@dataclass
class FileStage:
    """A directory of scenes, their issuer, and a reader of all token files."""

    base: Path
    zygote: Zygote
    issuer: FaultIssuer
    watcher: Watcher

    def scene(self, name: str, identity: Identity) -> FileScene:
        """Set up a scene with one identity, whose files are read all the time."""
        scene = FileScene(self.base / name, self.zygote, [identity])
        scene.watch(self.watcher)
        return scene


@asynccontextmanager
async def stage(base: Path, zygote: Zygote, policy: RefreshPolicy | None = None) -> AsyncIterator[FileStage]:
    """Set up an issuer and a reader; at the end, nothing that was read may have been torn or missing."""
    async with FaultIssuer(refresh_policy=policy) as issuer:
        with Watcher() as watcher:
            yield FileStage(base, zygote, issuer, watcher)
        assert not watcher.faults({token.value for token in issuer.issued})
