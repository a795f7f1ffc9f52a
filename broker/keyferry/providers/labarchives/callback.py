"""What LabArchives' login page sends a browser back with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyferry.errors import Reason, Refused, RetryClass
from keyferry.grants.document import is_vschar, shown
from keyferry.secret import SecretValue

if TYPE_CHECKING:
    from collections.abc import Mapping


def read_login(parameters: Mapping[str, str]) -> tuple[SecretValue, SecretValue]:
    """Return the e-mail address and the code of a callback. Raises Refused: code ``missing_code``, or what it said."""
    if "error" in parameters:
        said = shown(parameters.get("error")) or "unreadable"
        raise Refused(
            f"LabArchives refused the login: {said}. Begin again to be asked once more.",
            code="login_refused",
            reason=Reason.APPROVAL_REQUIRED,
            retry=RetryClass.NEEDS_PERSON,
        )
    email, code = parameters.get("email", ""), parameters.get("auth_code", "")
    if not email.isprintable() or not email or not is_vschar(code):
        raise Refused(
            "The answer that the browser brought from LabArchives holds no code. Nothing was done with it; begin the"
            " login again.",
            code="missing_code",
            reason=Reason.APPROVAL_REQUIRED,
            retry=RetryClass.NEEDS_PERSON,
        )
    return SecretValue(email), SecretValue(code)
