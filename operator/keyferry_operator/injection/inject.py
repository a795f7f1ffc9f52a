"""One pod with its annotations to the patch that injects it: pure, and the same whenever it is asked again."""

from __future__ import annotations

import difflib
import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from keyferry_operator.injection import patch, sidecar
from keyferry_operator.injection.identities import Named
from keyferry_operator.injection.needs import ROOT, needs
from keyferry_operator.injection.pods import OTHERS, SIDECAR, is_native
from keyferry_operator.injection.settings import NATIVE_SIDECARS, shown_version
from keyferry_operator.injection.wishes import (
    CONTAINERS,
    DEFAULT_PORT,
    INJECT,
    INJECTED,
    MODE,
    PORT,
    Mode,
    Refused,
    read_wishes,
    words,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from keyferry.spec.identity import ServiceIdentitySpec
    from keyferry_operator.injection.needs import Needs, Variable
    from keyferry_operator.injection.patch import Operation
    from keyferry_operator.injection.pods import Json, Pod
    from keyferry_operator.injection.settings import InjectionSettings
    from keyferry_operator.injection.wishes import Wishes

OURS: Final = "keyferry-"
"""How our volumes' names begin."""


@dataclass(frozen=True, slots=True)
class Injection:
    """What becomes of a pod that may come in."""

    operations: tuple[Operation, ...] = ()
    identities: tuple[str, ...] = ()
    """Empty where the pod asks for nothing."""
    mode: Mode | None = None
    warnings: tuple[str, ...] = ()


def inject(
    pod: Pod, namespace: str, identity: Callable[[str], ServiceIdentitySpec | None], settings: InjectionSettings
) -> Injection:
    """Return what to change in a pod of a namespace; ``identity`` says what is known of those that it names.

    Raises:
        Refused: it cannot be injected as its annotations ask.

    """
    wishes = read_wishes(pod.annotations)
    if wishes is None:
        return Injection()
    if pod.is_mirror:
        told = f"{INJECT}: the kubelet alone changes static pods, so nothing is injected into this one"
        return Injection(warnings=(told,))
    return _Injected(pod, namespace, wishes, identity, settings).injection()


class _Injected:
    """A pod on its way in."""

    def __init__(
        self,
        pod: Pod,
        namespace: str,
        wishes: Wishes,
        identity: Callable[[str], ServiceIdentitySpec | None],
        settings: InjectionSettings,
    ) -> None:
        self._pod = pod
        self._namespace = namespace
        self._wishes = wishes
        self._named = [Named(name, identity(name)) for name in wishes.identities]
        self._settings = settings
        self._again = INJECTED in pod.annotations
        self._with_sidecar = wishes.mode is Mode.SIDECAR

    def injection(self) -> Injection:
        """Return the changes. Raises Refused."""
        self._check()
        given = needs(self._wishes, self._named, self._settings.kubernetes)
        if self._with_sidecar:
            given.volumes += sidecar.volumes(self._settings)
        place = self._place()
        receivers = self._receivers(place)
        self._check_mounts(receivers, given)
        operations = [
            *self._annotations(receivers),
            *self._list("volumes", self._pod.volumes, _with(self._pod.volumes, given.volumes)),
            *self._start(place, receivers, given),
            *self._rest(receivers, given),
        ]
        warnings = (*given.warnings, *self._doubts())
        return Injection(tuple(operations), self._wishes.identities, self._wishes.mode, warnings)

    # What cannot be

    def _check(self) -> None:
        spec, wishes, settings = self._pod.spec, self._wishes, self._settings
        if _is_windows(spec):
            raise Refused(f"{INJECT}: the files are for Linux, and this pod is for Windows.")
        names = [container["name"] for _, _, container in self._pod.everyone()]
        if self._with_sidecar and SIDECAR in names and not self._again:
            raise Refused(f"{INJECT}: the pod has a container named {SIDECAR}, as the sidecar would be: rename it.")
        for volume in self._pod.volumes:
            if volume["name"].startswith(OURS) and not self._again:
                raise Refused(
                    f"{INJECT}: names of volumes that begin with {OURS} are kept for this, and the pod has one named"
                    f" {volume['name']}: rename it."
                )
        if not self._with_sidecar:
            return
        if settings.kubernetes < NATIVE_SIDECARS:
            raise Refused(
                f"{INJECT} needs native sidecars, which Kubernetes has from {shown_version(NATIVE_SIDECARS)} on, and"
                f" this is {shown_version(settings.kubernetes)}: set {MODE}: Secret."
            )
        if spec.get("hostNetwork"):
            if not settings.host_network:
                raise Refused(
                    f"{INJECT}: the pod is on its node's network (hostNetwork), where the sidecar's endpoints could be"
                    " reached by everybody on the node, and this installation does not allow it: leave hostNetwork out,"
                    f" set {MODE}: Secret, or have the administrator set the chart's sidecar.hostNetwork."
                )
            if wishes.port is None:
                raise Refused(
                    f"{PORT} is missing: the pod is on its node's network (hostNetwork), so name a port of the node"
                    " that no other pod uses."
                )
        self._check_port(wishes.port or DEFAULT_PORT)

    def _check_port(self, port: int) -> None:
        for _, _, container in self._pod.everyone():
            taken = [each for each in container.get("ports") or () if each.get("containerPort") == port]
            if taken and container["name"] != SIDECAR:
                raise Refused(
                    f"{PORT}: the container {container['name']} has the port {port} itself: name another one, such as"
                    f' "{port + 1 if port < 65535 else port - 1}".'  # noqa: PLR2004 - the last port
                )

    def _check_mounts(self, receivers: Iterable[Json], given: Needs) -> None:
        wanted = [mount["mountPath"] for mount in given.mounts]
        for container in receivers:
            for mount in container.get("volumeMounts") or ():
                path = "/" + posixpath.normpath(mount["mountPath"]).lstrip("/")
                ours = str(mount.get("name")).startswith(OURS)
                if not ours and (path in wanted or f"{path}/".startswith(f"{ROOT}/")):
                    raise Refused(
                        f"{INJECT}: the container {container['name']} mounts something of its own at {path}, where the"
                        f" files are to be: mount it elsewhere, or leave the container out of {CONTAINERS}."
                    )

    def _doubts(self) -> Iterable[str]:
        """Say what would have the pod wait, for whoever creates it by hand."""
        for named in self._named:
            if named.spec is None:
                yield f"ServiceIdentity {named.name} is not there yet; the pod's containers wait for it"
            elif self._with_sidecar and not named.admits(self._pod.service_account):
                yield (
                    f"ServiceIdentity {named.name} does not name the service account {self._pod.service_account} in"
                    " spec.consumers; the pod's containers wait until it does"
                )

    # Who gets what

    def _place(self) -> int:
        """Return where among the init containers, without ours, the sidecar belongs.

        After native sidecars and what other injectors prepare, for the sidecar needs the network as well; before the
        first ordinary init container, and before a container that is to have the files.
        """
        named = self._wishes.containers or ()
        others = [each for each in self._pod.init_containers if not self._is_sidecar(each)]
        for place, container in enumerate(others):
            first = not is_native(container) and container["name"] not in OTHERS
            if first or container["name"] in named:
                return place
        return len(others)

    def _is_sidecar(self, container: Json) -> bool:
        return self._with_sidecar and container["name"] == SIDECAR

    def _receivers(self, place: int) -> list[Json]:
        """Return the containers that get the files, other than those that somebody injected since."""
        inits = [each for each in self._pod.init_containers if not self._is_sidecar(each)]
        everyone = [*inits, *self._pod.containers]
        names = [each["name"] for each in everyone]
        wanted = self._wishes.containers
        if wanted is None:
            late = [*inits[place:], *self._pod.containers] if self._with_sidecar else everyone
            known = words(self._pod.annotations[INJECTED]) if self._again else None
            return [each for each in late if each["name"] not in OTHERS and (known is None or each["name"] in known)]
        for name in wanted:
            if name not in names:
                meant = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean {meant[0]}?" if meant else f"it has {', '.join(names)}."
                raise Refused(f"{CONTAINERS} names {name}, and the pod has no such container: {hint}")
        return [each for each in everyone if each["name"] in wanted]

    # The changes

    def _annotations(self, receivers: Sequence[Json]) -> list[Operation]:
        after = {INJECTED: ",".join(container["name"] for container in receivers)}
        return patch.entries("/metadata/annotations", self._pod.annotations, after)

    def _list(self, name: str, before: Sequence[Json], after: Sequence[Json]) -> list[Operation]:
        return patch.items(f"/spec/{name}", before if self._pod.spec.get(name) is not None else None, after)

    def _start(self, place: int, receivers: Sequence[Json], given: Needs) -> list[Operation]:
        """Return the changes to the init containers, the sidecar among them."""
        if not self._with_sidecar:
            return self._changed("initContainers", self._pod.init_containers, receivers, given)
        before = list(self._pod.init_containers)
        present = next((each for each in before if self._is_sidecar(each)), None)
        wanted = sidecar.container(self._pod, self._namespace, self._wishes, given.clients, self._settings)
        others = [each for each in before if each is not present]
        kept = present if present is not None and covers(present, wanted) else wanted
        moved = [*others[:place], kept, *others[place:]]
        return [
            *self._list("initContainers", before, moved),
            *self._changed("initContainers", moved, receivers, given),
        ]

    def _rest(self, receivers: Sequence[Json], given: Needs) -> list[Operation]:
        return self._changed("containers", self._pod.containers, receivers, given)

    def _changed(
        self, field: str, containers: Sequence[Json], receivers: Sequence[Json], given: Needs
    ) -> list[Operation]:
        """Return what adds the variables and mounts to those of the containers that get them."""
        operations: list[Operation] = []
        for place, container in enumerate(containers):
            if not any(container is each for each in receivers):
                continue
            path = patch.pointer("spec", field, place)
            variables, mounts = container.get("env"), container.get("volumeMounts")
            operations += patch.items(
                f"{path}/env", variables, [*_lacking(variables or (), given.variables), *(variables or ())]
            )
            operations += patch.items(f"{path}/volumeMounts", mounts, _with(mounts or (), given.mounts, "mountPath"))
        return operations


def _lacking(present: Iterable[Json], wanted: Iterable[Variable]) -> list[Json]:
    """Return the variables that a container does not set itself; first, so that its own may refer to them."""
    names = {each["name"] for each in present}
    return [each.entry for each in wanted if each.entry["name"] not in names and not names.intersection(each.unless)]


def _with(present: Sequence[Json], wanted: Sequence[Json], key: str = "name") -> list[Json]:
    """Return a list with ours in it: where one of them is there as it should be it stays, else it is put right."""
    ours = {each[key]: each for each in wanted}
    kept = [
        ours[each[key]] if each.get(key) in ours and not covers(each, ours[each[key]]) else each for each in present
    ]
    there = {each.get(key) for each in present}
    return [*kept, *(each for each in wanted if each[key] not in there)]


def covers(present: Any, wanted: Any) -> bool:
    """Tell whether something is as wanted; the API server adds defaults to it, and others what they need."""
    if isinstance(wanted, dict):
        return isinstance(present, dict) and all(
            name in present and covers(present[name], value) for name, value in wanted.items()
        )
    if isinstance(wanted, list) and any(isinstance(each, dict) for each in wanted):
        return isinstance(present, list) and all(any(covers(each, one) for each in present) for one in wanted)
    return bool(present == wanted)


def _is_windows(spec: Json) -> bool:
    chosen = (spec.get("nodeSelector") or {}).get("kubernetes.io/os")
    return "windows" in {chosen, (spec.get("os") or {}).get("name")}
