"""Format Tiled: what an unmodified Tiled client (tiled 0.2) looks for.

An API key goes into ``TILED_API_KEY``, which the client reads once when it starts. A login's access token goes into the
client's token cache, ``$TILED_CACHE_DIR/tokens/<quoted API URL>/access_token``: read again at every 401, so it can be
renewed under a running client. The client deletes the file when it gives up on it and removes sub-directories that it
finds there, so the cache has to be a directory that it may write in: never a mounted Secret.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyferry.providers.tiled import token_directory_name
from keyferry.render.env import env_lines
from keyferry.render.given import access_token

if TYPE_CHECKING:
    from keyferry.render.given import RenderInput
    from keyferry.spec.target import TargetFile

API_KEY_FILE: Final = "TILED_API_KEY"
ENV_FILE: Final = "tiled.env"
CACHE_FOLDER: Final = ".tiled"


def render_tiled(file: TargetFile, given: RenderInput) -> dict[str, bytes]:
    """Return the API key and its env file, or the token cache and, where its place is known, the env file naming it.

    No file that holds a token ends in a newline: the client would send it.
    """
    token = access_token(file, given)
    if given.api_key:
        return {API_KEY_FILE: token.encode("ascii"), ENV_FILE: env_lines({"TILED_API_KEY": token}, file)}
    folder = f"{CACHE_FOLDER}/tokens/{token_directory_name(given.provider_url)}"
    files = {f"{folder}/access_token": token.encode("ascii")}
    if given.directory:
        cache = f"{given.directory.rstrip('/')}/{CACHE_FOLDER}"
        files[ENV_FILE] = env_lines({"TILED_CACHE_DIR": cache}, file)
    return files
