"""The grants that need no person, each in a module named for its RFC.

A grant is a generator: it yields a request, is sent the answer, and returns the tokens. It is given finished inputs
and does nothing else. To add one: a module, a line in `GRANTS`, a test file. Refreshing is not in the mapping, for it
needs a refresh token and is there for whatever grant gave it: `keyferry.grants.rfc6749_refresh_token.refresh`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

from keyferry.grants import (
    rfc6749_client_credentials,
    rfc6749_password,
    rfc7523_jwt_bearer,
    rfc8693_token_exchange,
)
from keyferry.grants.inputs import GrantInputs
from keyferry.grants.rfc6749_refresh_token import refresh
from keyferry.model import Exchange
from keyferry.spec.grant import GrantType

Obtain: TypeAlias = Callable[[GrantInputs], Exchange]
"""Begins an exchange; nothing is sent and nothing raised before the generator is first advanced."""

GRANTS: Final[Mapping[GrantType, Obtain]] = MappingProxyType(
    {
        GrantType.CLIENT_CREDENTIALS: rfc6749_client_credentials.obtain,
        GrantType.PASSWORD: rfc6749_password.obtain,
        GrantType.JWT_BEARER: rfc7523_jwt_bearer.obtain,
        GrantType.TOKEN_EXCHANGE: rfc8693_token_exchange.obtain,
    }
)

__all__ = ["GRANTS", "Obtain", "refresh"]
