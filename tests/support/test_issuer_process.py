from __future__ import annotations

import math
from typing import TYPE_CHECKING

import httpx
import pytest

from keyferry.demo.clients import Client, Grant
from keyferry.demo.refresh_tokens import Outcome
from keyferry.demo.state import User
from tests.support.faults import Fault, FaultKind
from tests.support.issuer_process import IssuerProcess, Options
from tests.support.pki import Authority

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BOT = Client("bot", secrets=("s3cret",), grants=tuple(Grant), scopes=("read",))


@pytest.fixture
def process() -> Iterator[IssuerProcess]:
    with IssuerProcess() as process:
        process.add_client(BOT)
        yield process


def post(process: IssuerProcess, **parameters: str) -> httpx.Response:
    return httpx.post(f"{process.issuer}/token", data=parameters, auth=("bot", "s3cret"), trust_env=False, timeout=60)


def test_it_is_programmed_and_read_from_outside(process: IssuerProcess) -> None:
    process.settings(access_lifetime=3)
    process.add_user(User("ada", "lovelace"))
    answer = post(process, grant_type="password", username="ada", password="lovelace").json()
    assert answer["expires_in"] == 3
    assert [token.value for token in process.issued] == [answer["access_token"]]

    process.add_fault(Fault(FaultKind.SET_FIELD, name="expires_in", value=math.nan, times=1))
    spent = answer["refresh_token"]
    assert "NaN" in post(process, grant_type="refresh_token", refresh_token=spent).text
    assert post(process, grant_type="refresh_token", refresh_token=spent).status_code == 400
    record = next(spend for spend in process.spends if spend.token == spent)
    assert [shown.outcome for shown in record.presentations] == [Outcome.ACCEPTED, Outcome.REUSED]
    assert process.sent_refresh_tokens() == {spent: 2}
    assert [record.outcome for record in process.requests] == ["issued", "issued", "invalid_grant"]


def test_its_refresh_policy_can_be_changed_and_a_family_revoked(process: IssuerProcess) -> None:
    process.policy(reuse_window=60, replay_answer="Same")
    seed = process.seed_refresh_token("bot", "ada")
    answers = [post(process, grant_type="refresh_token", refresh_token=seed).json() for _ in range(2)]
    assert answers[0]["refresh_token"] == answers[1]["refresh_token"]
    process.revoke_family(seed)
    assert post(process, grant_type="refresh_token", refresh_token=seed).json()["error"] == "invalid_grant"


def test_it_stops_and_starts_on_its_port(process: IssuerProcess) -> None:
    process.stop()
    with pytest.raises(httpx.ConnectError):
        post(process, grant_type="client_credentials")
    process.start()
    assert post(process, grant_type="client_credentials").status_code == 200


def test_it_can_be_administered_on_its_own_port_and_pauses(process: IssuerProcess) -> None:
    process.pause()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{process.url}/token", data={"grant_type": "x"}, timeout=httpx.Timeout(30, read=0.3), trust_env=False
        )
    answer = httpx.post(f"{process.url}/_admin/resume", trust_env=False, timeout=60)
    assert (answer.status_code, answer.json()) == (200, {"result": None})
    process.clear_requests()
    assert post(process, grant_type="client_credentials").status_code == 200
    assert [record.client for record in process.requests] == ["bot"]


def test_wrong_commands_are_refused_with_a_reason(process: IssuerProcess) -> None:
    with pytest.raises(ValueError, match="KeyError"):
        process.write("unknown")
    with pytest.raises(ValueError, match="KeyError"):
        process.seed_refresh_token("nobody", "ada")
    with pytest.raises(ValueError, match="not a valid FaultKind"):
        process.write("faults/add", {"kind": "unknown"})


def test_a_restart_goes_on_with_its_port_keys_and_tokens(tmp_path: Path) -> None:
    options = Options(state_file=tmp_path / "state.json")
    with IssuerProcess(options) as process:
        process.add_client(BOT)
        issuer = process.issuer
        keys = httpx.get(f"{issuer}/jwks", trust_env=False, timeout=60).json()
        seed = process.seed_refresh_token("bot", "ada")
        successor = post(process, grant_type="refresh_token", refresh_token=seed).json()["refresh_token"]
    with IssuerProcess(options) as process:
        assert process.issuer == issuer
        again = httpx.get(f"{issuer}/jwks", trust_env=False, timeout=60).json()
        assert [key["x"] for key in again["keys"]] == [key["x"] for key in keys["keys"]]
        assert len(process.issued) == 1
        assert post(process, grant_type="refresh_token", refresh_token=successor).status_code == 200
        assert post(process, grant_type="refresh_token", refresh_token=seed).status_code == 400
        assert all(spend.revoked for spend in process.spends)


def test_it_speaks_tls_with_given_certificates(tmp_path: Path) -> None:
    authority = Authority.create()
    client_ca = tmp_path / "ca.crt"
    client_ca.write_text(authority.certificate)
    options = Options(certificate=authority.server().write(tmp_path, "server"), client_ca=client_ca, path="/realms/x")
    with IssuerProcess(options) as process:
        answer = httpx.get(
            f"{process.issuer}/.well-known/openid-configuration", verify=authority.client_context(), trust_env=False
        )
        assert answer.json()["issuer"] == process.issuer == f"{process.url}/realms/x"


def test_a_start_that_fails_says_so(process: IssuerProcess) -> None:
    port = httpx.URL(process.url).port or 0
    with pytest.raises(RuntimeError, match="did not start"):
        IssuerProcess(Options(port=port))
