"""What ``keyferry lint`` finds beyond single resources: what does not fit together, and what is not there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from keyferry.engine.credentials import named_keys
from keyferry.engine.roster import identity_refs
from keyferry.errors import Reason
from keyferry.model import ObjectKey
from keyferry.spec.check import check_loaded
from keyferry.spec.documents import find_line
from keyferry.spec.loaded import IDENTITY_KIND
from keyferry.spec.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from keyferry.run.sources import SecretSettings
    from keyferry.spec.loaded import IdentityResource, Loaded, ProviderResource


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found. Hints are no mistakes: what they miss may be given elsewhere."""

    mistakes: tuple[Problem, ...]
    hints: tuple[Problem, ...]


def lint(loaded: Loaded, secrets: SecretSettings) -> Findings:
    """Check resources that were read; ``secrets`` tells where else credentials may be."""
    return findings([*loaded.problems, *misfits(loaded)], _unknown_secrets(loaded, secrets))


def misfits(loaded: Loaded) -> list[Problem]:
    """Return what does not fit together among resources that are each valid."""
    return [*check_loaded(loaded), *_references(loaded), *_cycles(loaded)]


def findings(mistakes: Iterable[Problem], hints: Iterable[Problem]) -> Findings:
    """Put what was found in the order of the files, each at its field's line."""
    told = [sorted((_at_field(problem) for problem in found), key=_place) for found in (mistakes, hints)]
    return Findings(tuple(told[0]), tuple(told[1]))


def _place(problem: Problem) -> tuple[str, int, str]:
    return problem.source, problem.line or 0, problem.path


def _at_field(problem: Problem) -> Problem:
    """Return the problem at its field's line, where it is known by that of its resource only."""
    if problem.line is None or not problem.path or not problem.source:
        return problem
    try:
        data = Path(problem.source).read_bytes()
    except OSError:
        return problem
    line = find_line(data, problem.line, problem.path)
    return problem if line is None else problem.at(line=line)


def problem_of(resource: IdentityResource | ProviderResource, path: str, message: str, reason: Reason) -> Problem:
    """Return a problem of a resource, at its place."""
    kind = getattr(resource, "kind", IDENTITY_KIND)
    return Problem(path, message, reason, source=resource.source, line=resource.line, resource=f"{kind} {resource.key}")


def _references(loaded: Loaded) -> Iterator[Problem]:
    """Find identityRefs that lead nowhere, or to an identity that does not consent."""
    declared = {identity.key: identity for identity in loaded.identities}
    for identity in loaded.identities:
        for name in identity_refs(identity.spec):
            key = ObjectKey(identity.key.namespace, name)
            other = declared.get(key)
            if other is None and (IDENTITY_KIND, key) not in loaded.invalid:
                message = f"refers to ServiceIdentity {key}, which is not there"
                yield problem_of(identity, "spec", message, Reason.SECRET_NOT_FOUND)
            elif other is not None and not any(who.identity_name == identity.key.name for who in other.spec.consumers):
                message = f"needs a consumer {{identityName: {identity.key.name}}}, which presents its token"
                yield problem_of(other, "spec.consumers", message, Reason.SECRET_NOT_LABELLED)


def _cycles(loaded: Loaded) -> Iterator[Problem]:
    """Find identities that need their own token to obtain it."""
    following = {
        identity.key: [ObjectKey(identity.key.namespace, name) for name in identity_refs(identity.spec)]
        for identity in loaded.identities
    }
    for identity in loaded.identities:
        reached: set[ObjectKey] = set()
        pending = list(following[identity.key])
        while pending:
            key = pending.pop()
            if key not in reached:
                reached.add(key)
                pending += following.get(key, [])
        if identity.key in reached:
            message = "its identityRef leads back to itself, so that none of them could ever be first"
            yield problem_of(identity, "spec.grant", message, Reason.IDENTITY_CYCLE)


def _unknown_secrets(loaded: Loaded, secrets: SecretSettings) -> Iterator[Problem]:
    """Find credentials that are neither among the documents nor where the options say."""
    documents = {(secret.key, name) for secret in loaded.secrets for name in secret.data}
    resources: list[ProviderResource | IdentityResource] = [*loaded.providers, *loaded.identities]
    for resource in resources:
        namespace = resource.key.namespace
        for name, key in sorted(named_keys(resource.spec)):
            if (ObjectKey(namespace, name), key) in documents or (name, key) in secrets.environment:
                continue
            if secrets.directory is not None and (secrets.directory / namespace / name / key).is_file():
                continue
            message = f"key {key!r} of Secret {namespace}/{name} is not among the documents; `run` needs it from"
            yield problem_of(
                resource, "spec", f"{message} --secrets DIR or --secret-env {name}/{key}=VAR", Reason.SECRET_NOT_FOUND
            )
