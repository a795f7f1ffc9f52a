"""Client credentials (RFC 6749 4.4): a workload in its own name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyferry.grants.answer import parse_token_answer
from keyferry.grants.request import token_request

if TYPE_CHECKING:
    from keyferry.grants.inputs import GrantInputs
    from keyferry.model import Exchange


def obtain(inputs: GrantInputs) -> Exchange:
    """Exchange the client's own authentication for a token.

    A refresh token, that servers should not send here (4.4.3) and some do, is reported; the grant itself is cheaper.
    """
    response = yield token_request(inputs, [("grant_type", "client_credentials")])
    return parse_token_answer(response, inputs, one_time=False)
