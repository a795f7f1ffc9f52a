"""Schemas of ``status``, and what ``kubectl get`` shows.

The operator alone writes a status, so these schemas say types and meanings and set no bounds beyond those that every
Kubernetes condition has: a status that is refused helps nobody. Times are texts (RFC 3339). The columns of times are
of type string, for kubectl shows a date as its age, and one in the future as ``<invalid>``.
"""

from __future__ import annotations

from typing import Any, Final

Schema = dict[str, Any]
Column = dict[str, Any]


def _text(description: str) -> Schema:
    return {"description": description, "type": "string"}


def _time(description: str) -> Schema:
    return {"description": description, "type": "string", "format": "date-time"}


def _number(description: str) -> Schema:
    return {"description": description, "type": "integer", "format": "int64", "minimum": 0}


def _object(description: str, **properties: Schema) -> Schema:
    return {"description": description, "type": "object", "properties": properties}


_CONDITION: Final[Schema] = {
    "description": "One aspect of the resource's state, as all of Kubernetes writes it.",
    "type": "object",
    "required": ["type", "status", "lastTransitionTime", "reason", "message"],
    "properties": {
        "type": {
            "description": "Which aspect it is.",
            "type": "string",
            "maxLength": 316,
            "pattern": r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
            r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$",
        },
        "status": {
            "description": "Whether it holds.",
            "type": "string",
            "enum": ["True", "False", "Unknown"],
        },
        "observedGeneration": _number("The metadata.generation that the condition was set for."),
        "lastTransitionTime": _time("When status changed last."),
        "reason": {
            "description": "Why, in one word that programs can rely on; Events and metrics use the same.",
            "type": "string",
            "minLength": 1,
            "maxLength": 1024,
            "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
        },
        "message": {"description": "Why, and what helps, for people.", "type": "string", "maxLength": 32768},
    },
}


def _conditions(description: str) -> Schema:
    return {
        "description": description,
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": _CONDITION,
    }


_OBSERVED: Final = _number("The metadata.generation that this status was made for.")

# One field to the API server's bookkeeping of who owns what (metadata.managedFields), which else takes a quarter of an
# identity's room, and a fifth of the time of each write. Nobody else applies a part of it.
_WHOLE: Final = {"x-kubernetes-map-type": "atomic"}

IDENTITY_STATUS: Final = _WHOLE | _object(
    "What became of the identity. Written by Keyferry.",
    observedGeneration=_OBSERVED,
    revision=_number("Number of the published token; it grows by one with each renewal."),
    issueTime=_time("When the published token was issued."),
    expirationTime=_time("When the published token expires."),
    renewalTime=_time("When it is to be renewed."),
    nextAttemptTime=_time("When the next try is made, after a failure."),
    reauthorizeByTime=_time("When the login behind the token lapses, so that a person is needed before."),
    failureCount=_number("Failures in a row."),
    lastError=_object(
        "What went wrong last. Absent once a try has succeeded.",
        code=_text("Code of the error, as the provider or Keyferry names it."),
        message=_text("What happened, and what helps."),
    ),
    failure=_object(
        "What Keyferry needs to know of the failure after a restart.",
        retry=_text("Its class: Transient, Suspicious, InDoubt, NeedsConfiguration or NeedsPerson."),
        cause=_text("Fingerprint of the spec and credentials that failed: when it changes, the wait is waived."),
    ),
    lastHandledRenew=_text("Value of the annotation keyferry.dev/renew that was acted on last."),
    lastHandledLogin=_text("Value of the annotation keyferry.dev/login that was acted on last."),
    asked=_object(
        "What a replica that does not look after the identity was asked for by a pod, for the one that does.",
        time=_time("When."),
        minimumRemaining=_text("For how long the token is to be valid; 0s: look whether its login still holds."),
    ),
    consumers={
        "description": "Pods that hold it, by their own word: some twenty of them, by name.",
        "type": "object",
        "additionalProperties": _object(
            "What a pod holds.",
            revision=_number("Revision of the token in its files."),
            time=_time("When it told so."),
        ),
    },
    authorizedAs=_object(
        "Who approved: whose login the token is from, as far as the provider says. Absent where no person is needed.",
        subject=_text("The sub claim."),
        email=_text("The verified e-mail address."),
    ),
    binding=_object(
        "The Secret to mount (Service Binding for Kubernetes, provisioned service).",
        name=_text("Name of the Secret that holds the token."),
    ),
    approval=_object(
        "How a person approves. Absent unless one is needed, or was asked for and did not.",
        verificationURI=_text("Where to go (RFC 8628 3.2)."),
        verificationURIComplete=_text("The same, with the code in it."),
        userCode=_text("The code to enter there."),
        expirationTime=_time("When the code lapses; another one follows."),
        page=_text("Keyferry's own page for this approval."),
        message=_text("Why the last question came to nothing. Absent while one is open, and after an approval."),
    ),
    conditions=_conditions(
        "Ready: the published token is unexpired. Reconciling: something is under way. Stalled: only a change of the "
        "spec or of a credential, or a person, helps."
    ),
)

PROVIDER_STATUS: Final = _WHOLE | _object(
    "What is known of the provider. Written by Keyferry.",
    observedGeneration=_OBSERVED,
    issuer=_text("The issuer, as the server names it."),
    grantTypes={
        "description": "Grants that the server says it supports.",
        "type": "array",
        "x-kubernetes-list-type": "atomic",
        "items": {"type": "string"},
    },
    conditions=_conditions("Ready: the provider was found, and is as its resource says."),
)


def _column(name: str, path: str, kind: str = "string", *, wide: bool = False, description: str = "") -> Column:
    column: Column = {"name": name, "type": kind, "jsonPath": path}
    if description:
        column["description"] = description
    return column | ({"priority": 1} if wide else {})


def _ready(field: str) -> str:
    return f'.status.conditions[?(@.type=="Ready")].{field}'


IDENTITY_COLUMNS: Final = (
    _column("Ready", _ready("status"), description="Whether the published token is unexpired."),
    _column("Reason", _ready("reason")),
    _column("Grant", ".spec.grant.type"),
    _column("Expires", ".status.expirationTime", description="When the published token expires."),
    _column("Renews", ".status.renewalTime", description="When it is to be renewed."),
    _column("Secret", ".status.binding.name", description="The Secret that holds the token."),
    _column("Age", ".metadata.creationTimestamp", "date"),
    _column("Provider", ".spec.providerRef.name", wide=True),
    _column("Failures", ".status.failureCount", "integer", wide=True, description="Failures in a row."),
    _column("Message", _ready("message"), wide=True),
)
PROVIDER_COLUMNS: Final = (
    _column("Ready", _ready("status"), description="Whether the provider was found and is as its resource says."),
    _column("Reason", _ready("reason")),
    _column("Type", ".spec.type"),
    _column("Issuer", ".status.issuer"),
    _column("Age", ".metadata.creationTimestamp", "date"),
    _column("Message", _ready("message"), wide=True),
)
