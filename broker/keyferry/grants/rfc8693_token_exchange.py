"""Token exchange (RFC 8693): a token of one issuer, or for one audience, for a token for another."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from keyferry.errors import CredentialError
from keyferry.grants.answer import parse_token_answer, unpublishable
from keyferry.grants.request import token_request

if TYPE_CHECKING:
    from keyferry.grants.inputs import GrantInputs, SubjectToken
    from keyferry.model import Exchange, TokenSet

TOKEN_EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"  # noqa: S105 - a name
ACCESS_TOKEN_TYPE: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a name
REFRESH_TOKEN_TYPE: Final = "urn:ietf:params:oauth:token-type:refresh_token"  # noqa: S105 - a name
JWT_TYPE: Final = "urn:ietf:params:oauth:token-type:jwt"

_TOKEN_TYPE: Final = re.compile(r"urn:[-a-zA-Z0-9:._]{1,100}")


def obtain(inputs: GrantInputs) -> Exchange:
    """Exchange a subject token, and an actor token where there is one, for another token.

    A type that the resource does not name is that of an access token (RFC 8693 3). Raises `CredentialError` where
    there is no subject token. A token whose ``issued_token_type`` is missing or wrong is not publishable (2.2.1).
    """
    if inputs.subject is None:
        raise CredentialError("Token exchange needs a subject token: see grant.tokenExchange.subject.")
    grant = [("grant_type", TOKEN_EXCHANGE), *_party("subject", inputs.subject)]
    if inputs.actor is not None:
        grant.extend(_party("actor", inputs.actor))
    if inputs.requested_token_type:
        grant.append(("requested_token_type", inputs.requested_token_type))
    response = yield token_request(inputs, grant)
    tokens = parse_token_answer(response, inputs, one_time=False)
    problem = _problem(tokens, inputs.requested_token_type)
    return unpublishable(tokens, problem) if problem else tokens


def _party(role: str, token: SubjectToken) -> list[tuple[str, str]]:
    return [(f"{role}_token", token.token.reveal()), (f"{role}_token_type", token.token_type or ACCESS_TOKEN_TYPE)]


def _problem(tokens: TokenSet, requested: str) -> str:
    """Say why what was issued is not what may be published as an access token, or nothing."""
    issued = tokens.issued_token_type
    if not issued:
        return "The answer does not say what was issued (issued_token_type, RFC 8693 2.2.1)."
    if issued == REFRESH_TOKEN_TYPE:
        return "The provider issued a refresh token in place of an access token: a workload must not have one."
    if issued not in {ACCESS_TOKEN_TYPE, JWT_TYPE, requested}:
        named = issued if _TOKEN_TYPE.fullmatch(issued) else "one that is no registered name"
        return f"The provider issued a token of another type than was asked for: {named}."
    return ""
