"""Format Template: the user's own text with ``${…}`` in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyferry.errors import Reason, ResourceError
from keyferry.render.given import described, file_name, template_values
from keyferry.spec.template import TemplateError, parse_template

if TYPE_CHECKING:
    from keyferry.render.given import RenderInput
    from keyferry.spec.target import TargetFile
    from keyferry.spec.template import Template


def render_template(file: TargetFile, given: RenderInput) -> dict[str, bytes]:
    """Return the one file, in UTF-8, byte for byte as the template has it but for its names."""
    return {file_name(file): fill(file.template or "", file, given).encode()}


def fill(text: str, file: TargetFile, given: RenderInput) -> str:
    """Return ``text`` with its names replaced.

    Raises ``ResourceError`` for an unknown name, and for ``${id_token}`` where the provider issued none.
    """
    template = _parsed(text, file)
    values = template_values(file, given)
    if "id_token" in template.names and "id_token" not in values:
        raise ResourceError(
            f"The template uses ${{id_token}} ({described(file)}), but the provider issued no ID token."
            " Ask for one with the scope 'openid', with a grant that gives one, or leave it out of the template."
        )
    return template.fill(values)


def _parsed(text: str, file: TargetFile) -> Template:
    try:
        return parse_template(text)
    except TemplateError as error:
        raise ResourceError(f"{described(file)}: {error.message}", reason=Reason.INVALID_SPEC) from error
