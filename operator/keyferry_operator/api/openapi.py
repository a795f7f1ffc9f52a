"""The OpenAPI document of the broker API: served at ``/openapi.json``, and printed for ``docs/openapi.yaml``.

``python -m keyferry_operator.api.openapi`` prints it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import yaml

from keyferry_operator.api.answers import LONGEST_BODY, answer
from keyferry_operator.api.routes import VARIABLES

if TYPE_CHECKING:
    from aiohttp import web

    from keyferry_operator.api.routes import Asked

Schema = dict[str, Any]

IDENTITY: Final = "/v1/namespaces/{namespace}/identities/{name}"
PAGE: Final = "/v1/page/{operation}"
DOCUMENT: Final = "/openapi.json"

_REFUSALS: Final[dict[int, str]] = {
    400: "The request cannot be understood.",
    401: "No token of a live pod was presented.",
    403: "It is not signed, or not shown to this viewer.",
    404: "It is not there, or not for whoever asks.",
    409: "ApprovalRequired or LifetimeTooShort: asking again does not help.",
    413: "The body is too large.",
    415: "The body is not said to be JSON.",
    421: "Another replica looks after the identity.",
    429: "This pod asks too often.",
    503: "Not just now; ask again after Retry-After.",
}
_ALWAYS: Final = (400, 401, 404, 429, 503)


def document() -> Schema:
    """Return the document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Keyferry broker API",
            "version": "v1",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "What sidecars and the approval page ask of the operator. Paths are not percent-encoded.",
        },
        "servers": [{"url": "https://keyferry-broker.keyferry.svc"}],
        "security": [{"pod": []}],
        "paths": {
            f"{IDENTITY}/token": {"parameters": _place(), "get": _token()},
            f"{IDENTITY}/held": {"parameters": _place(), "post": _held()},
            **{
                f"{IDENTITY}/labarchives/{name}": {"parameters": _place(), "post": post}
                for name, post in _labarchives()
            },
            PAGE: {"parameters": [_path("operation", "One of those of the approval page.")], "post": _page()},
            DOCUMENT: {"get": _itself()},
        },
        "components": {
            "securitySchemes": {
                "pod": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "A projected service-account token for the audience keyferry, bound to the pod.",
                }
            },
            "schemas": _schemas(),
        },
    }


async def serve(_asked: Asked) -> web.StreamResponse:
    """Answer with the document; it is no secret."""
    return answer(document())


# --- operations -------------------------------------------------------------------------------------------------------


def _token() -> Schema:
    wait = "hold the request for so many (55 at most) until there is another answer than If-None-Match names."
    return {
        "operationId": "getToken",
        "summary": "The current token of an identity, with its files.",
        "parameters": [
            {
                "name": "minimum_remaining",
                "in": "query",
                "description": "For how long the token must be valid, such as 90m; seconds alone are taken, too.",
                "schema": {"type": "string", "pattern": "^(?:[0-9]{1,9}|[0-9]{1,4}[dhms])$"},
            },
            _header("If-None-Match", "What the caller has: an ETag."),
            _header("Prefer", f"wait=SECONDS (RFC 7240): {wait} Other preferences are ignored."),
        ],
        "responses": _responses(
            {
                "200": _content("The token.", "Token", {"ETag": '^"[!#-~]+"$', "Preference-Applied": "^wait=[0-9]+$"}),
                "304": {"description": "It is what the caller has."},
            },
            *_ALWAYS,
            409,
        ),
    }


def _held() -> Schema:
    return _post(
        "reportHeld", "A pod's word that it has written a revision.", "Held", {"204": {"description": "Noted."}}
    )


def _labarchives() -> list[tuple[str, Schema]]:
    done = {"204": {"description": "Done."}}
    signed, user = _content("What one call needs.", "SignedCall"), _content("Whose login it is.", "User")
    bare = (*_ALWAYS, 409)
    return [
        ("signature", _post("sign", "Have one LabArchives call signed.", "Method", {"200": signed}, 403, 409)),
        ("user", _bare("getUser", "Whose login it is, without the user id.", {"200": user}, *bare)),
        ("clock", _bare("correctClock", "Have LabArchives asked for its time.", done, *bare)),
        ("refused", _bare("reportRefused", "LabArchives wants the person to log in again.", done, *_ALWAYS)),
    ]


def _page() -> Schema:
    found = {"description": "What the operation brings.", **_json({"type": "object"})}
    return {
        "operationId": "page",
        "summary": "An operation of the approval page, for its service account alone.",
        "requestBody": {"required": True, **_json({"type": "object"})},
        "responses": _responses({"200": found}, *_ALWAYS, 403, 409, 413, 415, 421),
    }


def _itself() -> Schema:
    return {
        "operationId": "getDocument",
        "summary": "This document.",
        "security": [],
        "responses": {"200": {"description": "It.", **_json({"type": "object"})}},
    }


def _post(operation: str, summary: str, body: str, good: Schema, *refusals: int) -> Schema:
    return {
        "operationId": operation,
        "summary": summary,
        "requestBody": {
            "required": True,
            "description": f"{LONGEST_BODY} bytes at most.",
            **_json({"$ref": f"#/components/schemas/{body}"}),
        },
        "responses": _responses(good, *_ALWAYS, *refusals, 413, 415),
    }


def _bare(operation: str, summary: str, good: Schema, *refusals: int) -> Schema:
    return {"operationId": operation, "summary": summary, "responses": _responses(good, *refusals)}


def _responses(good: Schema, *refusals: int) -> Schema:
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    bad = {str(status): {"description": _REFUSALS[status], "content": problem} for status in sorted(set(refusals))}
    return {**good, **bad}


# --- parts ------------------------------------------------------------------------------------------------------------


def _place() -> list[Schema]:
    return [_path("namespace", "The pod's, and the identity's."), _path("name", "The identity's.")]


def _path(name: str, description: str) -> Schema:
    schema = {"type": "string", "pattern": f"^{VARIABLES[name]}$"}
    return {"name": name, "in": "path", "required": True, "description": description, "schema": schema}


def _header(name: str, description: str) -> Schema:
    return {"name": name, "in": "header", "description": description, "schema": {"type": "string"}}


def _json(schema: Schema) -> Schema:
    return {"content": {"application/json": {"schema": schema}}}


def _content(description: str, schema: str, headers: dict[str, str] | None = None) -> Schema:
    found = {"description": description, **_json({"$ref": f"#/components/schemas/{schema}"})}
    if headers:
        found["headers"] = {name: {"schema": _pattern(pattern)} for name, pattern in headers.items()}
    return found


def _pattern(pattern: str) -> Schema:
    return {"type": "string", "pattern": pattern}


def _closed(required: tuple[str, ...], **properties: Schema) -> Schema:
    return {"type": "object", "required": list(required), "properties": properties}


def _all(**properties: Schema) -> Schema:
    return _closed(tuple(properties), **properties)


def _schemas() -> Schema:
    text, flag, whole = {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 0}
    time, number = {"type": "string", "format": "date-time"}, {"type": "number", "minimum": 0}
    maybe = {"type": ["number", "null"], "minimum": 0, "exclusiveMaximum": 1e15}
    return {
        "Token": _all(
            access_token={**text, "description": "Empty for an identity whose calls are signed instead."},
            token_type=text,
            expires_in={**whole, "description": "Seconds."},
            issued_at=time,
            expires_at=time,
            scope=text,
            revision=whole,
            age={**maybe, "description": "For how many seconds the replica has had it; null where it began with it."},
            files={"type": "array", "items": {"$ref": "#/components/schemas/File"}},
        ),
        "File": _all(
            path={**text, "description": "Relative to the identity's directory."},
            content=text,
            local={**flag, "description": "It holds markers that the sidecar replaces."},
        ),
        "Held": _closed(
            ("revision", "written_at"),
            revision={"type": "integer", "minimum": 1, "maximum": (1 << 63) - 1},
            written_at={**number, "exclusiveMaximum": 1e15, "description": "Unix seconds."},
            delay_seconds={**maybe, "description": "Since a replica had it; null where the pod did not wait for it."},
        ),
        "Method": {
            **_all(method=_pattern("^[a-z][a-z0-9_]{0,62}[a-z_]$")),
            "additionalProperties": False,
        },
        "SignedCall": _all(
            region=text,
            uid=text,
            accessKeyId=text,
            expires=whole,
            signature=text,
            authorities={"type": ["string", "null"]},
        ),
        "User": _all(
            email=text,
            fullName=text,
            mayLogInAlone=flag,
            notebooks={"type": "array", "items": _all(id=text, name=text, isDefault=flag)},
        ),
        "Problem": _closed(
            ("type", "title", "status", "detail"),
            type=text,
            title=text,
            status=whole,
            detail={**text, "description": "For people."},
            reason={**text, "description": "For programs."},
            nextAttemptTime=time,
        ),
    }


if __name__ == "__main__":
    yaml.safe_dump(document(), sys.stdout, sort_keys=False, allow_unicode=True, width=120)
