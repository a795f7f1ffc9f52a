"""LabArchives: a notebook service whose every request is signed with the organization's access key.

There are no tokens. A person's login, by callback or by a one-hour code, is exchanged once for a user id (``uid``)
that stands for the person at this access key until it is revoked. Nothing refreshes a code. Errors are XML with a
number, and the number decides, for the HTTP status that comes with it is not documented.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from keyferry.providers.labarchives.login import LabArchivesUser, Notebook, SignedCall
from keyferry.providers.labarchives.methods import is_signable, may_be_signed
from keyferry.providers.labarchives.signature import AccessKey, Signature, sign

if TYPE_CHECKING:
    from keyferry.providers.labarchives.session import SESSION_TYPE, epoch_time, login_url, redeem, user_info

__all__ = [
    "SESSION_TYPE",
    "AccessKey",
    "LabArchivesUser",
    "Notebook",
    "Signature",
    "SignedCall",
    "epoch_time",
    "is_signable",
    "login_url",
    "may_be_signed",
    "redeem",
    "sign",
    "user_info",
]


def __getattr__(name: str) -> Any:
    # Those who only sign must not pay for the exchange, which brings all grants along.
    if name in __all__:
        return getattr(importlib.import_module("keyferry.providers.labarchives.session"), name)
    raise AttributeError(name)
