"""What is known, when a pod is admitted, of the identities that it names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyferry.spec.target import FileFormat, TargetType
from keyferry_operator.injection.wishes import CLIENTS, INJECT, Client, Refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from keyferry.spec.identity import ServiceIdentitySpec
    from keyferry_operator.injection.wishes import Wishes

FORMATS: Final[Mapping[Client, FileFormat]] = {
    Client.BEARER: FileFormat.TOKEN,
    Client.TILED: FileFormat.TILED,
    Client.AIOD: FileFormat.AIOD,
    Client.LABARCHIVES: FileFormat.LABARCHIVES,
}
DEFAULT_TOKEN_FILE: Final = "token"  # noqa: S105 - a file name


@dataclass(frozen=True, slots=True)
class Named:
    """An identity that a pod names; its spec is None where it is not there, or not seen yet."""

    name: str
    spec: ServiceIdentitySpec | None

    def serves(self, client: Client) -> bool:
        """Tell whether it is known to write files for a client."""
        return self.spec is not None and any(file.format is FORMATS[client] for file in self.spec.target.files)

    @property
    def token_file(self) -> str | None:
        """The name of the file that holds the token as it is; the usual one where nothing is known."""
        if self.spec is None:
            return DEFAULT_TOKEN_FILE
        files = self.spec.target.files
        return next((file.name for file in files if file.format is FileFormat.TOKEN), None)

    @property
    def keeps_cache(self) -> bool:
        """Whether it is known to write Tiled's token directory, which the client has to be able to write in."""
        return self.serves(Client.TILED) and not self.has_key

    @property
    def has_key(self) -> bool:
        """Whether it is known to have a Tiled API key published in the place of a token."""
        return self.spec is not None and self.spec.api_key is not None

    @property
    def secret(self) -> str:
        """The name of its Secret, as far as one can tell."""
        return (self.spec.target.secret_name if self.spec is not None else None) or self.name

    @property
    def lacks_secret(self) -> str:
        """Why no Secret can hold what it writes, as the rest of a sentence; empty where one can, or nobody knows."""
        if self.spec is not None and self.spec.target.type is TargetType.NONE:
            return "publishes no Secret (spec.target.type is None)"
        if self.keeps_cache:
            return "writes Tiled's token directory, which no Secret can hold"
        if self.serves(Client.LABARCHIVES):
            return "writes LabArchives' files, which no Secret can hold"
        return ""

    def admits(self, account: str) -> bool:
        """Tell whether pods of a service account may fetch it, or whether that is not known."""
        return self.spec is None or any(each.service_account_name == account for each in self.spec.consumers)


def chosen(wishes: Wishes, identities: Iterable[Named], client: Client) -> Named | None:
    """Return the one identity whose files a client is pointed at; None where there is none, or nobody wants it.

    An identity that is not there yet is believed to write what the pod asks for.

    Raises:
        Refused: there are two, or the pod asks for a client that no identity writes files for.

    """
    if wishes.clients is not None and client not in wishes.clients:
        return None
    named = tuple(identities)
    if client is Client.BEARER:
        return _first(wishes, named[0])
    serving = [each for each in named if each.serves(client)]
    if len(serving) > 1:
        one, other = serving[:2]
        raise Refused(
            f"{INJECT} names {one.name} and {other.name}, which both write what the one set of variables of"
            f" {client.value} would point at: leave {client.value} out of {CLIENTS} and set the variables yourself, or"
            " give each its own pod."
        )
    unknown = [each for each in named if each.spec is None] if wishes.clients is not None else []
    for found in (*serving, *unknown):
        return found
    if wishes.clients is not None:
        raise Refused(
            f"{CLIENTS} names {client.value}, but none of {', '.join(each.name for each in named)} writes files of the"
            f" format {FORMATS[client].value}: add it to spec.target.files of one of them."
        )
    return None


def _first(wishes: Wishes, first: Named) -> Named | None:
    """Return the identity of ``BEARER_TOKEN_FILE``: the first, or none."""
    if first.token_file is not None:
        return first
    if wishes.clients is None:
        return None
    raise Refused(
        f"{CLIENTS} names bearer, but {first.name}, the first that {INJECT} names, writes no file of the format Token:"
        " add one to its spec.target.files."
    )
