"""Resource owner password credentials (RFC 6749 4.3), for providers that offer nothing better."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyferry.errors import CredentialError
from keyferry.grants.answer import parse_token_answer
from keyferry.grants.request import token_request

if TYPE_CHECKING:
    from keyferry.grants.inputs import GrantInputs
    from keyferry.model import Exchange


def obtain(inputs: GrantInputs) -> Exchange:
    """Exchange a user name and a password for tokens.

    A refusal is `RetryClass.NEEDS_PERSON`, never retried: accounts lock after a few wrong passwords. Raises
    `CredentialError` where user name or password is missing.
    """
    if inputs.username is None or inputs.password is None:
        raise CredentialError("The password grant needs a user name and a password: see grant.password.")
    grant = [
        ("grant_type", "password"),
        ("username", inputs.username.reveal()),
        ("password", inputs.password.reveal()),
    ]
    response = yield token_request(inputs, grant)
    return parse_token_answer(response, inputs, one_time=False)
