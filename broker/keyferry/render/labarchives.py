"""Format LabArchives: the environment of an unmodified LabArchives client (labapi 1.2) at the loopback endpoint.

``API_URL``, ``ACCESS_KEYID`` and ``ACCESS_PWD`` are the client's own variables; ``AUTH_EMAIL`` and ``AUTH_KEY`` are
those of its documented headless script. None of them is a credential of LabArchives: the endpoint takes any address and
any code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyferry.render.env import env_lines

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyferry.render.given import Endpoint, RenderInput
    from keyferry.spec.target import TargetFile

ENV_FILE: Final = "labarchives.env"
ANY_EMAIL: Final = "keyferry@localhost"
ANY_CODE: Final = "keyferry"


def render_labarchives(file: TargetFile, given: RenderInput) -> dict[str, bytes]:
    """Return the env file; nothing where no endpoint is served, for there is nothing else that may be published."""
    if given.endpoint is None:
        return {}
    return {ENV_FILE: env_lines(labarchives_variables(given.endpoint, given.token.email), file)}


def labarchives_variables(endpoint: Endpoint, email: str = "") -> Mapping[str, str]:
    """Return the variables; ``email`` is the person's, where it is known."""
    safe = bool(email) and email.isprintable() and "'" not in email
    return {
        "API_URL": f"{endpoint.url}/labarchives",
        "ACCESS_KEYID": endpoint.access_key_id,
        "ACCESS_PWD": endpoint.placeholder.reveal(),
        "AUTH_EMAIL": email if safe else ANY_EMAIL,
        "AUTH_KEY": ANY_CODE,
    }
