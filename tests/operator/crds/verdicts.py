"""What the API server and the operator say to the same resource."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx

from keyferry.spec.resources import load_object

if TYPE_CHECKING:
    from tests.support.cluster import Cluster

V1ALPHA1 = "keyferry.dev/v1alpha1"
CRD_VERSION = "apiextensions.k8s.io/v1"
REFUSALS = {httpx.codes.BAD_REQUEST, httpx.codes.UNPROCESSABLE_ENTITY}  # by the schema's shape, and by its rules
TIMEOUT = 180.0
Resource = dict[str, Any]


class Verdict(NamedTuple):
    """What the API server says to a new resource."""

    stored: Resource | None
    complaint: str
    fields: tuple[str, ...]

    @property
    def accepted(self) -> bool:
        return self.stored is not None


class Judge:
    """Asks the API server, over one connection, what it would store; nothing is stored."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        token = cluster.access.token
        self._client = httpx.Client(
            base_url=cluster.url,
            verify=cluster.access.context(),
            trust_env=False,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=TIMEOUT,
        )

    def close(self) -> None:
        self._client.close()

    def __call__(self, value: Resource, *, strict: bool = True) -> Verdict:
        body = copy.deepcopy(value)
        body["metadata"] = {key: item for key, item in body["metadata"].items() if key in {"name", "annotations"}}
        inside = None if body["kind"] == "ClusterTokenProvider" else self._namespace
        path = self._cluster.api.path(V1ALPHA1, body["kind"], inside)
        params = {"dryRun": "All", "fieldValidation": "Strict" if strict else "Ignore"}
        try:
            answer = self._client.post(path, params=params, json=body)
        except ValueError as error:  # infinity is nothing that could be sent
            return Verdict(None, str(error), ())
        if answer.is_success:
            return Verdict(answer.json(), "", ())
        status = answer.json()
        assert answer.status_code in REFUSALS, status
        causes = status.get("details", {}).get("causes", ())
        return Verdict(None, status["message"], tuple(cause["field"] for cause in causes if "field" in cause))

    def assert_agreed(self, value: Resource) -> None:
        """Both accept it, or both refuse it; what is stored without what is unknown is understood too."""
        verdict = self(value)
        problems = [str(problem) for problem in load_object(value).problems]
        assert verdict.accepted == (not problems), (value, verdict.complaint, problems)
        for stored in (verdict.stored, self(value, strict=False).stored):
            assert stored is None or understood(stored), (stored, load_object(stored).problems)


def understood(value: Resource) -> bool:
    """Tell whether the operator takes a resource without complaint."""
    loaded = load_object(value)
    return len(loaded.identities + loaded.providers) == 1 and not loaded.problems


def conditions(found: Resource) -> dict[str, str]:
    """Return the status of each condition of an object."""
    return {condition["type"]: condition["status"] for condition in found.get("status", {}).get("conditions", ())}
