"""What is kept for a revocation answers for what is gone, and for nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keyferry.engine.keepsakes import LARGEST, Keepsakes, Remembered
from keyferry.errors import CredentialError, Reason
from keyferry.secret import SecretValue

if TYPE_CHECKING:
    from keyferry.engine.ports import CredentialSource

HOSTS = frozenset({"auth.example.org"})


class Source:
    """Implements `keyferry.engine.ports.CredentialSource` from dictionaries."""

    restricts_hosts = True

    def __init__(self) -> None:
        self.secrets: dict[tuple[str, str, str], bytes] = {}
        self.reason = Reason.SECRET_NOT_FOUND

    async def secret(self, namespace: str, name: str, key: str, _hosts: frozenset[str]) -> bytes:
        return self._found(namespace, name, key)

    async def config(self, namespace: str, name: str, key: str) -> bytes:
        return self._found(namespace, name, key)

    async def service_account_token(
        self, namespace: str, name: str, audience: str, _expiration: float, _hosts: frozenset[str]
    ) -> SecretValue:
        return SecretValue(self._found(namespace, name, audience).decode())

    def _found(self, *place: str) -> bytes:
        try:
            return self.secrets[place[0], place[1], place[2]]
        except KeyError:
            raise CredentialError("not there", reason=self.reason) from None


async def _read_all(source: CredentialSource) -> list[object]:
    return [
        await source.secret("team", "bot", "secret", HOSTS),
        await source.config("team", "ca", "pem"),
        (await source.service_account_token("team", "robot", "idp", 600, HOSTS)).reveal(),
    ]


@pytest.fixture
def source() -> Source:
    source = Source()
    source.secrets = {
        ("team", "bot", "secret"): b"s3cret",
        ("team", "ca", "pem"): b"PEM",
        ("team", "robot", "idp"): b"jwt",
    }
    return source


async def test_what_was_read_is_there_when_its_source_is_gone(source: Source) -> None:
    keepsakes = Keepsakes(source)
    before = await _read_all(keepsakes)
    source.secrets.clear()
    assert await _read_all(Remembered(source, keepsakes.all())) == before
    assert "s3cret" not in repr(keepsakes.all())


async def test_what_is_there_goes_before_what_was_kept(source: Source) -> None:
    keepsakes = Keepsakes(source)
    await _read_all(keepsakes)
    source.secrets["team", "bot", "secret"] = b"rotated"
    assert await Remembered(source, keepsakes.all()).secret("team", "bot", "secret", HOSTS) == b"rotated"


@pytest.mark.parametrize("reason", [Reason.SECRET_NOT_LABELLED, Reason.HOST_NOT_ALLOWED])
async def test_what_its_owner_does_not_allow_any_more_is_not_used(source: Source, reason: Reason) -> None:
    keepsakes = Keepsakes(source)
    await _read_all(keepsakes)
    source.secrets.clear()
    source.reason = reason
    with pytest.raises(CredentialError):
        await Remembered(source, keepsakes.all()).secret("team", "bot", "secret", HOSTS)


async def test_what_was_never_read_is_not_made_up(source: Source) -> None:
    with pytest.raises(CredentialError):
        await Remembered(source, Keepsakes(source).all()).secret("team", "other", "secret", HOSTS)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"x" * (LARGEST + 1)])
async def test_what_is_no_credential_is_not_kept(source: Source, content: bytes) -> None:
    source.secrets["team", "bot", "secret"] = content
    keepsakes = Keepsakes(source)
    assert await keepsakes.secret("team", "bot", "secret", HOSTS) == content
    assert keepsakes.all() == ()
