"""What the containers of an injected pod get: volumes, mounts, variables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from keyferry.render.aiod import CONFIG_FILE, TOKEN_FILE
from keyferry.render.aiod import FOLDER as AIOD_FOLDER
from keyferry.render.labarchives import ENV_FILE as LABARCHIVES_FILE
from keyferry.render.tiled import API_KEY_FILE, CACHE_FOLDER
from keyferry.render.tiled import ENV_FILE as TILED_FILE
from keyferry_operator.injection.identities import chosen
from keyferry_operator.injection.settings import FILE_VARIABLES, shown_version
from keyferry_operator.injection.wishes import CLIENTS, FALLBACK, HOME, INJECT, MODE, Client, Mode, Refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyferry_operator.injection.identities import Named
    from keyferry_operator.injection.pods import Json
    from keyferry_operator.injection.settings import Version
    from keyferry_operator.injection.wishes import Wishes

ROOT: Final = "/var/run/keyferry"
"""Where each identity has a directory, in every container."""
FILES_VOLUME: Final = "keyferry-files"
"""The memory volume that the sidecar writes."""
SECRET_VOLUME: Final = "keyferry-secret-"  # noqa: S105 - a volume name
AIOD_VOLUME: Final = "keyferry-aiod"
TOGETHER: Final = ("API_URL", "ACCESS_KEYID", "ACCESS_PWD")
"""Variables of LabArchives' client that only make sense together: who sets one has an endpoint of their own."""
LABARCHIVES: Final = (*TOGETHER, "AUTH_EMAIL", "AUTH_KEY")
FALLBACK_VOLUME: Final = "keyferry-fallback-"
MOUNTED_MODE: Final = 0o444


@dataclass(frozen=True, slots=True)
class Variable:
    """An environment variable, for containers that set neither it nor one of ``unless`` themselves."""

    entry: Json
    unless: tuple[str, ...] = ()


@dataclass(slots=True)
class Needs:
    """What the chosen containers get, and what the person should know."""

    volumes: list[Json] = field(default_factory=list)
    mounts: list[Json] = field(default_factory=list)
    variables: list[Variable] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)
    """Those that something is set up for."""
    warnings: list[str] = field(default_factory=list)

    def say(self, name: str, value: str) -> None:
        """Set a variable to what is known already."""
        self.variables.append(Variable({"name": name, "value": value}))


def fallback_volume(wishes: Wishes, name: str) -> str:
    """Return the name of the volume with an identity's Secret that the sidecar falls back on."""
    return f"{FALLBACK_VOLUME}{wishes.identities.index(name)}"  # an identity's own name may be too long, or have dots


def needs(wishes: Wishes, identities: Sequence[Named], kubernetes: Version) -> Needs:
    """Return what containers need. Raises Refused."""
    found = _Secrets(wishes, identities) if wishes.mode is Mode.SECRET else _Files(wishes, identities, kubernetes)
    return found.needs()


class _Clients(ABC):
    """What both ways have in common: the variables that say where the files are."""

    def __init__(self, wishes: Wishes, identities: Sequence[Named]) -> None:
        self.wishes = wishes
        self.identities = identities
        self.made = Needs()

    def needs(self) -> Needs:
        self.volumes()
        self.made.say("KEYFERRY_DIR", ROOT)
        first = self._chosen(Client.BEARER)
        if first is not None:
            self.made.clients.append(Client.BEARER)
            self.made.say("BEARER_TOKEN_FILE", f"{ROOT}/{first.name}/{first.token_file}")
        if self.wishes.home is not None:
            self.made.say("HOME", self.wishes.home)
        for client, set_up in (
            (Client.TILED, self.tiled),
            (Client.AIOD, self._aiod),
            (Client.LABARCHIVES, self.labarchives),
        ):
            found = self._chosen(client)
            if found is not None:
                self.made.clients.append(client)
                set_up(found)
        return self.made

    def _chosen(self, client: Client) -> Named | None:
        return chosen(self.wishes, self.identities, client)

    def _aiod(self, identity: Named) -> None:
        if self.wishes.home is None:
            self.made.warnings.append(
                f"{identity.name} writes files for the AI-on-Demand client, which looks for them in .aiod of the home"
                f" directory alone: name that directory with {HOME}, or it will not find them"
            )
            return
        self.aiod(identity, f"{self.wishes.home.rstrip('/')}/{AIOD_FOLDER}")

    @abstractmethod
    def volumes(self) -> None:
        """Add the volumes of all identities, and their mounts."""

    @abstractmethod
    def tiled(self, identity: Named) -> None:
        """Set up Tiled's client."""

    @abstractmethod
    def aiod(self, identity: Named, place: str) -> None:
        """Set up the AI-on-Demand client, whose files must be in the directory ``place``."""

    @abstractmethod
    def labarchives(self, identity: Named) -> None:
        """Set up LabArchives' client."""


class _Files(_Clients):
    """Files on the memory volume, by the sidecar."""

    def __init__(self, wishes: Wishes, identities: Sequence[Named], kubernetes: Version) -> None:
        super().__init__(wishes, identities)
        self._kubernetes = kubernetes
        self._caches: set[str] = set()

    def volumes(self) -> None:
        self.made.mounts.append({"name": FILES_VOLUME, "mountPath": ROOT, "readOnly": True})
        for identity in self.identities:
            if identity.keeps_cache:
                self._writable_cache(identity)
            if identity.name in self.wishes.fallback:
                self._fallback(identity)

    def tiled(self, identity: Named) -> None:
        if identity.has_key:
            self._from_file(identity, TILED_FILE, API_KEY_FILE, Client.TILED)
            return
        self._writable_cache(identity)
        self.made.say("TILED_CACHE_DIR", f"{ROOT}/{identity.name}/{CACHE_FOLDER}")
        if identity.spec is None and self._kubernetes >= FILE_VARIABLES:
            self._from_file(identity, TILED_FILE, API_KEY_FILE, Client.TILED, optional=True)

    def aiod(self, identity: Named, place: str) -> None:
        path = f"{identity.name}/{AIOD_FOLDER}"
        self.made.mounts.append({"name": FILES_VOLUME, "mountPath": place, "subPath": path, "readOnly": True})

    def labarchives(self, identity: Named) -> None:
        for name in LABARCHIVES:
            self._from_file(identity, LABARCHIVES_FILE, name, Client.LABARCHIVES, unless=TOGETHER)

    def _fallback(self, identity: Named) -> None:
        """Add a volume for the sidecar alone; the pod starts without what is not there."""
        aiod = identity.serves(Client.AIOD)
        why = "writes AI-on-Demand's files, which are others in a Secret" if aiod else identity.lacks_secret
        if why:
            raise Refused(f"{FALLBACK} names {identity.name}, which {why}: leave it out there.")
        secret = {"secretName": identity.secret, "defaultMode": MOUNTED_MODE, "optional": True}
        self.made.volumes.append({"name": fallback_volume(self.wishes, identity.name), "secret": secret})

    def _writable_cache(self, identity: Named) -> None:
        """Mount Tiled's token directory over itself, writable: the client deletes files that no longer serve."""
        if identity.name in self._caches:
            return
        self._caches.add(identity.name)
        path = f"{identity.name}/{CACHE_FOLDER}"
        self.made.mounts.append({"name": FILES_VOLUME, "mountPath": f"{ROOT}/{path}", "subPath": path})

    def _from_file(
        self,
        identity: Named,
        file: str,
        name: str,
        client: Client,
        *,
        optional: bool = False,
        unless: tuple[str, ...] = (),
    ) -> None:
        """Have the kubelet read a variable from a file that the sidecar writes, once the gate is open."""
        if self._kubernetes < FILE_VARIABLES:
            annotation = CLIENTS if self.wishes.clients is not None else INJECT
            raise Refused(
                f"{annotation}: the variables of {client.value} for {identity.name} come from files that the sidecar"
                f" writes, which Kubernetes can do from {shown_version(FILE_VARIABLES)} on, and this is"
                f" {shown_version(self._kubernetes)}: "
                + (
                    f"set {MODE}: Secret, or leave {client.value} out of {CLIENTS}."
                    if client is Client.TILED
                    else f"upgrade the cluster, or leave {client.value} out of {CLIENTS}."
                )
            )
        reference = {"volumeName": FILES_VOLUME, "path": f"{identity.name}/{file}", "key": name, "optional": optional}
        self.made.variables.append(Variable({"name": name, "valueFrom": {"fileKeyRef": reference}}, unless))


class _Secrets(_Clients):
    """Files of mounted Secrets, by the kubelet."""

    def volumes(self) -> None:
        for place, identity in enumerate(self.identities):
            self._check(identity)
            name = f"{SECRET_VOLUME}{place}"
            secret = {"secretName": identity.secret, "defaultMode": MOUNTED_MODE}
            self.made.volumes.append({"name": name, "secret": secret})
            self.made.mounts.append({"name": name, "mountPath": f"{ROOT}/{identity.name}", "readOnly": True})

    def tiled(self, identity: Named) -> None:
        reference = {"name": identity.secret, "key": API_KEY_FILE, "optional": False}
        self.made.variables.append(Variable({"name": API_KEY_FILE, "valueFrom": {"secretKeyRef": reference}}))

    def aiod(self, identity: Named, place: str) -> None:
        items = [{"key": name, "path": name} for name in (CONFIG_FILE, TOKEN_FILE)]
        secret = {"secretName": identity.secret, "defaultMode": MOUNTED_MODE, "items": items}
        self.made.volumes.append({"name": AIOD_VOLUME, "secret": secret})
        self.made.mounts.append({"name": AIOD_VOLUME, "mountPath": place, "readOnly": True})

    def labarchives(self, identity: Named) -> None:
        raise Refused(
            f"{MODE} is Secret, and LabArchives' client needs an endpoint that signs its calls, which the sidecar of"
            f" {identity.name} would serve: use {MODE}: Sidecar."
        )

    def _check(self, identity: Named) -> None:
        """Refuse what cannot come by a Secret: the pod would wait for it for ever."""
        if identity.lacks_secret:
            raise Refused(f"{MODE} is Secret, and {identity.name} {identity.lacks_secret}: use {MODE}: Sidecar.")
