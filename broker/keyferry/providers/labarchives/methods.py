"""Which LabArchives methods a workload may have signed.

A signature covers the method and the time, and no other parameter: whoever has it may add any ``uid``. So what logs
somebody in, tells about users or administers is never signed for a workload, whatever a resource lists.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_METHOD: Final = re.compile(r"[a-z][a-z0-9_]*[a-z_]")
"""Ends in no digit: the signed text is the method followed by the time, and must be read in one way only."""
_LONGEST: Final = 64

_NEVER: Final = frozenset(
    {
        "api_user_login",
        "epoch_time",
        "institutional_login_urls",
        "user_access_info",
        "user_info_via_id",
        "users_notebooks",
    }
)
_NEVER_ABOUT: Final = re.compile(
    r"(^|_)(user|users|login|logout|auth|account|accounts|admin|site|license|password)(_|$)"
)


def is_signable(method: str) -> bool:
    """Tell whether a resource may list ``method`` at all: its name is well-formed and not a login or user method."""
    if len(method) > _LONGEST or _METHOD.fullmatch(method) is None:
        return False
    return method not in _NEVER and _NEVER_ABOUT.search(method) is None


def may_be_signed(method: str, allowed: Iterable[str]) -> bool:
    """Tell whether ``method`` is signed for a workload, given the methods that the provider resource lists."""
    return is_signable(method) and method in allowed
