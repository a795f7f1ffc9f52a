"""A token set to the contents of files: pure, one module per format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from keyferry.errors import Reason, ResourceError
from keyferry.render.aiod import render_aiod
from keyferry.render.env import render_env
from keyferry.render.given import Delivery, Endpoint, RenderInput, described
from keyferry.render.json_object import render_json
from keyferry.render.labarchives import render_labarchives
from keyferry.render.template import render_template
from keyferry.render.tiled import render_tiled
from keyferry.render.token import render_token
from keyferry.spec.target import FileFormat

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from keyferry.spec.target import TargetFile

    Renderer: TypeAlias = Callable[[TargetFile, RenderInput], dict[str, bytes]]

__all__ = ["ENDPOINT_FORMATS", "Delivery", "Endpoint", "RenderInput", "check_formats", "render"]

ENDPOINT_FORMATS: Final = frozenset({FileFormat.AIOD, FileFormat.LABARCHIVES})
"""Formats that name the loopback endpoint, where it is served."""
_RENDERERS: Final[Mapping[FileFormat, Renderer]] = {
    FileFormat.TOKEN: render_token,
    FileFormat.JSON: render_json,
    FileFormat.ENV: render_env,
    FileFormat.TEMPLATE: render_template,
    FileFormat.TILED: render_tiled,
    FileFormat.AIOD: render_aiod,
    FileFormat.LABARCHIVES: render_labarchives,
}


def check_formats(files: Sequence[TargetFile], *, api_key: bool, delivery: Delivery) -> None:
    """Raise ``ResourceError`` for a format that cannot be written: so that it is known before a token is asked for.

    ``Reason.FORMAT_NEEDS_SIDECAR`` where it cannot be delivered in a Secret.
    """
    for file in files:
        if delivery is not Delivery.SECRET:
            continue
        if file.format is FileFormat.LABARCHIVES:
            raise ResourceError(
                "Format LabArchives cannot be delivered in a Secret: its client needs an endpoint that signs its calls."
                " Deliver through a sidecar.",
                reason=Reason.FORMAT_NEEDS_SIDECAR,
            )
        if file.format is FileFormat.TILED and not api_key:
            raise ResourceError(
                "Format Tiled with the login's own token cannot be delivered in a Secret: the Tiled client deletes"
                " files in its token directory. Set spec.apiKey to publish a scoped API key instead, or deliver through"
                " a sidecar.",
                reason=Reason.FORMAT_NEEDS_SIDECAR,
            )


def render(files: Sequence[TargetFile], given: RenderInput) -> dict[str, bytes]:
    """Return the content of every file by its path relative to the identity's directory. Never print what it returns.

    Raises:
        ResourceError: a format cannot be written (see ``check_formats``), two files have one name, or a template is
            wrong.
        PublishError: the token, or what the provider says of it, holds characters that must not reach a file.

    """
    check_formats(files, api_key=given.api_key, delivery=given.delivery)
    rendered: dict[str, bytes] = {}
    for file in files:
        for name, content in _RENDERERS[file.format](file, given).items():
            if name in rendered:
                raise ResourceError(
                    f"Two entries of spec.target.files write {name!r} (the second: {described(file)})."
                    " Give each file a name of its own."
                )
            rendered[name] = content
    folders = {parent for name in rendered for parent in _folders(name)}
    for name in rendered.keys() & folders:
        raise ResourceError(f"{name!r} in spec.target.files is a file here and a directory there. Rename the file.")
    return rendered


def _folders(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]
