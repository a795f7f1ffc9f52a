from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given as for_all
from hypothesis import strategies

from keyferry.errors import KeyferryError, PublishError, Reason, ResourceError, RetryClass
from keyferry.render import Delivery, Endpoint, check_formats, render
from keyferry.secret import SecretValue
from keyferry.spec.target import FileFormat, TargetFile
from tests.render.sample import ID_TOKEN, TOKEN, given, token_set

if TYPE_CHECKING:
    from pathlib import Path

    from keyferry.render import RenderInput

TILED = TargetFile(format=FileFormat.TILED)
LABARCHIVES = TargetFile(format=FileFormat.LABARCHIVES)
AIOD = TargetFile(format=FileFormat.AIOD, api_server="https://api.example.org")
ENDPOINT = Endpoint("http://127.0.0.1:7531/x", SecretValue("placeholder"), "keyferry")
TOKEN_CACHE = ".tiled/tokens/https%3A%2F%2Fexample.org%2Fapi%2Fv1%2F/access_token"


def file(file_format: FileFormat, name: str = "file", **fields: Any) -> TargetFile:
    return TargetFile(format=file_format, name=name, **fields)


def unchecked(file_format: FileFormat, name: str | None = "file", **fields: Any) -> TargetFile:
    """A file past the checks of the resource: rendering has its own."""
    return TargetFile.model_construct(format=file_format, name=name, **fields)


def env(**variables: str) -> TargetFile:
    return file(FileFormat.ENV, "token.env", variables=variables)


def template(text: str) -> TargetFile:
    return file(FileFormat.TEMPLATE, template=text)


def test_token_is_raw_without_newline() -> None:
    assert render([file(FileFormat.TOKEN, "token")], given()) == {"token": TOKEN.encode()}


def test_json_has_the_fields_of_the_contract() -> None:
    content = render([file(FileFormat.JSON, "token.json")], given())["token.json"]
    assert json.loads(content) == {
        "access_token": TOKEN,
        "token_type": "Bearer",
        "issued_at": "2026-09-21T14:13:20Z",
        "expires_at": "2026-09-21T15:13:20Z",
        "scope": "openid read",
        "revision": 7,
    }
    assert content.endswith(b"}\n")


def test_template_fills_every_name_and_keeps_the_rest() -> None:
    text = (
        "[auth]\r\ntoken = ${access_token}\nid=${id_token} type=${token_type} ${issued_at} ${expires_at}"
        " ${expires_at_unix} ${scope} ${issuer} ${subject} ${revision} $${literal} $HOME é"
    )
    assert render([template(text)], given())["file"].decode() == (
        f"[auth]\r\ntoken = {TOKEN}\nid={ID_TOKEN} type=Bearer 2026-09-21T14:13:20Z 2026-09-21T15:13:20Z"
        " 1790003600 openid read https://auth.example.org/realms/aiod nightly-bot 7 ${literal} $HOME é"
    )


def test_the_issuer_is_the_providers_url_where_the_token_names_none() -> None:
    rendered = render([template("${issuer}")], given(token_set(issuer="")))
    assert rendered["file"] == b"https://Example.org:443/api/v1"


def test_a_template_that_wants_an_id_token_which_was_not_issued_is_refused() -> None:
    with pytest.raises(ResourceError, match=r"issued no ID token.*scope 'openid'"):
        render([template("${id_token}")], given(token_set(id_token=None)))
    assert render([template("${subject}")], given(token_set(id_token=None)))


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(ResourceError, match=r"acces_token.*did you mean"):
        render([unchecked(FileFormat.TEMPLATE, template="${acces_token}")], given())


@pytest.mark.parametrize("character", ["\n", "\r", "\0", "\x1b", "\x7f", "\x85", "\u2028"])
def test_a_provider_cannot_write_lines_of_its_own_into_a_template(character: str) -> None:
    with pytest.raises(PublishError, match="the provider's subject holds a control character"):
        render([template("user = ${subject}")], given(token_set(subject=f"bot{character}admin = yes")))


def test_env_defaults_to_bearer_token() -> None:
    assert render([unchecked(FileFormat.ENV, "e", variables={})], given()) == {
        "e": f"BEARER_TOKEN='{TOKEN}'\n".encode()
    }


def test_env_lines_read_the_same_in_a_shell(tmp_path: Path) -> None:
    files = [env(TOKEN_VALUE="${access_token}", ODD='a "b" $HOME `id` \\n #x = ', UNTIL="${expires_at}")]
    path = tmp_path / "token.env"
    path.write_bytes(render(files, given())["token.env"])
    shell = shutil.which("sh")
    assert shell is not None
    printed = subprocess.run(
        [shell, "-c", '. "$1"; printf "%s\\n%s\\n%s" "$TOKEN_VALUE" "$ODD" "$UNTIL"', "sh", path],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.split("\n") == [TOKEN, 'a "b" $HOME `id` \\n #x = ', "2026-09-21T15:13:20Z"]


@pytest.mark.parametrize("value", ["it's", "two\nlines", "a\rb", "a\tb", "a\x7fb"])
def test_env_refuses_what_single_quotes_cannot_carry(value: str) -> None:
    with pytest.raises(PublishError, match=r"format Env, file 'token\.env': the value of BAD holds") as refused:
        render([env(BAD=value)], given())
    assert value not in refused.value.message


def test_env_refuses_names_that_are_none() -> None:
    for name in ("1A", "A-B", "", "A=B", "É"):
        with pytest.raises(ResourceError, match="cannot name an environment variable"):
            render([unchecked(FileFormat.ENV, "e", variables={name: "x"})], given())


@pytest.mark.parametrize("delivery", list(Delivery))
def test_a_tiled_api_key_is_a_file_and_a_variable(delivery: Delivery) -> None:
    key = "0a1b" * 18
    assert render([TILED], given(token_set(key), api_key=True, delivery=delivery)) == {
        "TILED_API_KEY": key.encode(),
        "tiled.env": f"TILED_API_KEY='{key}'\n".encode(),
    }


def test_a_tiled_login_fills_the_clients_token_cache() -> None:
    assert render([TILED], given()) == {TOKEN_CACHE: TOKEN.encode()}
    assert render([TILED], given(directory="/run/keyferry/default/x/")) == {
        TOKEN_CACHE: TOKEN.encode(),
        "tiled.env": b"TILED_CACHE_DIR='/run/keyferry/default/x/.tiled'\n",
    }


def test_a_tiled_login_cannot_be_delivered_in_a_secret() -> None:
    with pytest.raises(ResourceError, match=r"spec\.apiKey") as refused:
        render([TILED], given(delivery=Delivery.SECRET))
    assert refused.value.reason is Reason.FORMAT_NEEDS_SIDECAR


def test_labarchives_at_an_endpoint() -> None:
    token = replace(token_set(), email="ada@example.org")
    rendered = render([LABARCHIVES], given(token, endpoint=ENDPOINT))
    assert rendered == {
        "labarchives.env": b"API_URL='http://127.0.0.1:7531/x/labarchives'\n"
        b"ACCESS_KEYID='keyferry'\n"
        b"ACCESS_PWD='placeholder'\n"
        b"AUTH_EMAIL='ada@example.org'\n"
        b"AUTH_KEY='keyferry'\n"
    }
    for email in ("", "o'hara@example.org", "a\nb"):
        odd = render([LABARCHIVES], given(replace(token, email=email), endpoint=ENDPOINT))["labarchives.env"]
        assert b"AUTH_EMAIL='keyferry@localhost'\n" in odd
    assert TOKEN.encode() not in rendered["labarchives.env"]


def test_labarchives_without_an_endpoint_publishes_nothing() -> None:
    assert render([LABARCHIVES], given()) == {}
    with pytest.raises(ResourceError, match="sidecar") as refused:
        check_formats([LABARCHIVES], api_key=False, delivery=Delivery.SECRET)
    assert refused.value.reason is Reason.FORMAT_NEEDS_SIDECAR


def test_aiod_at_an_endpoint_holds_no_token() -> None:
    rendered = render([AIOD], given(endpoint=ENDPOINT))
    assert set(rendered) == {".aiod/config.toml", ".aiod/token.toml"}
    assert tomllib.loads(rendered[".aiod/config.toml"].decode()) == {
        "api_server": "https://api.example.org/",
        "auth_server": "http://127.0.0.1:7531/x/",
    }
    assert tomllib.loads(rendered[".aiod/token.toml"].decode()) == {"refresh_token": "placeholder"}


@pytest.mark.parametrize(("delivery", "folder"), [(Delivery.SECRET, ""), (Delivery.DIRECTORY, ".aiod/")])
def test_aiod_without_an_endpoint_is_for_short_jobs(delivery: Delivery, folder: str) -> None:
    rendered = render([AIOD], given(delivery=delivery))
    assert tomllib.loads(rendered[f"{folder}config.toml"].decode()) == {
        "api_server": "https://api.example.org/",
        "auth_server": "https://auth.example.org/",
        "realm": "aiod",
    }
    assert tomllib.loads(rendered[f"{folder}token.toml"].decode()) == {
        "refresh_token": "managed-by-keyferry",
        "access_token": TOKEN,
        "expiration_date": "2026-09-21T15:13:20+00:00",
    }


def test_aiod_never_tells_an_expiry_that_its_client_misreads() -> None:
    token = replace(token_set(), expires_at=token_set().issued_at + 30 * 86400)
    told = tomllib.loads(render([AIOD], given(token))[".aiod/token.toml"].decode())["expiration_date"]
    assert datetime.fromisoformat(told).timestamp() - token.issued_at < 86400
    plain = render([TargetFile(format=FileFormat.AIOD)], given(replace(token, issuer="https://issuer.example.org")))
    assert tomllib.loads(plain[".aiod/config.toml"].decode()) == {}


def test_two_files_of_one_name_are_refused() -> None:
    with pytest.raises(ResourceError, match=r"Two entries .* write 'tiled\.env'"):
        render([file(FileFormat.TOKEN, "tiled.env"), TILED], given(api_key=True))
    with pytest.raises(ResourceError, match="a file here and a directory there"):
        render([unchecked(FileFormat.TOKEN, ".tiled"), TILED], given())


def test_a_format_without_its_name_is_refused() -> None:
    with pytest.raises(ResourceError, match=r"Format Token .* needs a name"):
        render([unchecked(FileFormat.TOKEN, None)], given())


ALL_FORMATS = [
    file(FileFormat.TOKEN),
    file(FileFormat.JSON),
    env(BEARER_TOKEN="${access_token}"),
    template("${access_token}"),
    TILED,
]


@pytest.mark.parametrize("target", ALL_FORMATS, ids=lambda target: str(target.format))
@pytest.mark.parametrize("bad", ["", "canary\n", "can\0ary", "\x1bcanary", "canaryé", "canary\x7f", "\ud800canary"])
def test_tokens_outside_vschar_reach_no_file(target: TargetFile, bad: str) -> None:
    with pytest.raises(PublishError, match=rf"format {target.format}.*RFC 6749 A\.12") as refused:
        render([target], given(token_set(bad)))
    assert "canary" not in refused.value.message
    assert refused.value.retry is RetryClass.NEEDS_CONFIGURATION


def test_an_id_token_outside_vschar_is_refused() -> None:
    with pytest.raises(PublishError, match="ID token"):
        render([template("${id_token}")], given(token_set(id_token="a\nb")))


def outcome(target: TargetFile, source: RenderInput) -> bytes | KeyferryError:
    try:
        (content,) = render([target], source).values()
    except KeyferryError as error:
        return error
    return content


PRINTABLE = strategies.text(strategies.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=40)


@for_all(strategies.one_of(PRINTABLE, strategies.text()), strategies.one_of(PRINTABLE, strategies.text()))
def test_whatever_comes_it_is_a_whole_file_or_an_error_without_the_token(text: str, subject: str) -> None:
    token = f"canary{text}"
    source = given(token_set(token, subject=subject))
    allowed = re.fullmatch("[ -~]+", token) is not None
    lines = template("t=${access_token}\ns=${subject}\n")
    for target in (file(FileFormat.TOKEN), file(FileFormat.JSON), env(A="${access_token}"), lines):
        content = outcome(target, source)
        if isinstance(content, KeyferryError):
            assert "canary" not in str(content)
            assert not allowed or target.format in (FileFormat.ENV, FileFormat.TEMPLATE)
            continue
        assert allowed
        if target.format is FileFormat.TOKEN:
            assert content == token.encode()
        elif target.format is FileFormat.JSON:
            assert json.loads(content)["access_token"] == token
        else:
            assert content.splitlines()[0].endswith((token.encode(), f"'{token}'".encode()))
            assert content.count(b"\n") == (2 if target is lines else 1)
