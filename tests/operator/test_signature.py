"""The signed record on a managed Secret: believed where it was written, as it was written, and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from keyferry.model import ObjectKey, TokenSet
from keyferry.publication import Publication
from keyferry.record import Binding, Record
from keyferry.secret import SecretValue
from keyferry_operator import signature

ISSUER = "https://auth.example.org"
KEY = b"k" * 32
PLACE = ObjectKey("batch", "nightly-token")
IDENTITY = ObjectKey("batch", "nightly")
TOKEN = "a-token-that-nobody-may-see"
FILES = {"token": TOKEN.encode(), "token.env": b"A='b'\n"}
RECORD = Record(
    uid="1-2-3",
    key=IDENTITY,
    origin="here",
    generation=4,
    revision=3,
    spec_hash="spec",
    binding=Binding(ISSUER, ("auth.example.org",), "an-id-from-a-secret"),
    renewal_time=150.0,
    minimum_remaining=10.0,
    token=TokenSet(SecretValue(TOKEN), "Bearer", 100.0, 200.0, scope="read", issuer=ISSUER, subject="ada"),
)
PUBLICATION = Publication(
    key=IDENTITY,
    uid="1-2-3",
    revision=3,
    generation=4,
    issued_at=100.0,
    expires_at=200.0,
    spec_hash="spec",
    files_hash="files",
    files=FILES,
)
SIGNED = signature.sign(PUBLICATION, RECORD, PLACE, KEY)


def test_what_was_signed_is_believed_and_shows_no_secret() -> None:
    found = signature.read(SIGNED, FILES, PLACE, KEY)
    assert found is not None
    about, published = found
    assert published.intact
    assert (published.uid, published.revision, published.generation) == ("1-2-3", 3, 4)
    restored = signature.restore(about, origin="here")
    assert RECORD.binding is not None
    assert RECORD.token is not None
    assert restored == replace(
        RECORD,
        binding=replace(RECORD.binding, client_id=""),
        token=replace(RECORD.token, access_token=SecretValue("")),
    )
    assert TOKEN not in SIGNED
    assert "an-id-from-a-secret" not in SIGNED


@pytest.mark.parametrize(
    "place",
    [ObjectKey("other", "nightly-token"), ObjectKey("batch", "copy"), ObjectKey("batch/nightly-token", ""), IDENTITY],
)
def test_a_copy_is_not_believed(place: ObjectKey) -> None:
    assert signature.read(SIGNED, FILES, place, KEY) is None


@settings(deadline=None)
@given(st.text(max_size=400))
def test_what_somebody_wrote_is_not_believed(annotation: str) -> None:
    assert signature.read(annotation, FILES, PLACE, KEY) is None
    assert signature.read(f"{SIGNED.partition('.')[0]}.{annotation}", FILES, PLACE, KEY) is None


@settings(deadline=None)
@given(st.integers(0, len(SIGNED) - 1), st.characters())
def test_what_somebody_edited_is_not_believed(index: int, character: str) -> None:
    assume(SIGNED[index] != character)
    edited = SIGNED[:index] + character + SIGNED[index + 1 :]
    assert signature.read(edited, FILES, PLACE, KEY) is None
    assert signature.read(SIGNED, FILES, PLACE, KEY[:-1] + b"x") is None


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["token", "token.env", "more"]), st.binary(max_size=8)))
def test_edited_data_are_noticed(data: dict[str, bytes]) -> None:
    found = signature.read(SIGNED, data, PLACE, KEY)
    assert found is not None
    assert not found[1].intact
