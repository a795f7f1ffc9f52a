"""A JWT as authorization grant (RFC 7523 2.1): somebody the provider trusts says who we are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyferry.errors import CredentialError
from keyferry.grants.answer import parse_token_answer
from keyferry.grants.request import token_request

if TYPE_CHECKING:
    from keyferry.grants.inputs import GrantInputs
    from keyferry.model import Exchange

JWT_BEARER: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"


def obtain(inputs: GrantInputs) -> Exchange:
    """Exchange an assertion for a token; raises `CredentialError` where there is no assertion."""
    if inputs.assertion is None:
        raise CredentialError("The JWT bearer grant needs an assertion: see grant.jwtBearer.assertion.")
    grant = [("grant_type", JWT_BEARER), ("assertion", inputs.assertion.token.reveal())]
    response = yield token_request(inputs, grant)
    return parse_token_answer(response, inputs, one_time=False)
