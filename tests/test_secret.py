import copy
import json
import pickle

import pytest

from keyferry.secret import SecretValue

CANARY = "canary-7f3a"


def test_no_printed_form_shows_the_secret() -> None:
    secret = SecretValue(CANARY)
    forms = [
        str(secret),
        repr(secret),
        f"{secret}",
        f"{secret:>40}",
        repr([secret]),
        repr({"a": secret}),
    ]
    assert all(CANARY not in form for form in forms)
    assert all("***" in form for form in forms)
    assert secret.reveal() == CANARY


@pytest.mark.parametrize("copying", [pickle.dumps, copy.copy, json.dumps])
def test_it_does_not_slip_into_a_serialiser(copying: object) -> None:
    with pytest.raises(TypeError) as caught:
        copying(SecretValue(CANARY))  # type: ignore[operator]
    assert CANARY not in str(caught.value)


def test_it_compares_and_hashes_by_value() -> None:
    assert SecretValue("a") == SecretValue("a")
    assert SecretValue("a") != SecretValue("b")
    assert SecretValue("a") != "a"
    assert len({SecretValue("a"), SecretValue("a"), SecretValue("b")}) == 2
    assert not SecretValue("")


def test_a_fingerprint_needs_its_key_and_tells_secrets_apart() -> None:
    secret = SecretValue(CANARY)
    assert secret.fingerprint(b"k1") == SecretValue(CANARY).fingerprint(b"k1")
    assert secret.fingerprint(b"k1") != secret.fingerprint(b"k2")
    assert secret.fingerprint(b"k1") != SecretValue("other").fingerprint(b"k1")
