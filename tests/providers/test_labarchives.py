"""LabArchives' wire: the signature's published vector, what is read from answers, and what is never signed."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.errors import Ambiguous, ExchangeError, KeyferryError, Reason, Refused, RetryClass
from keyferry.model import HttpRequest, HttpResponse
from keyferry.providers import labarchives
from keyferry.providers.labarchives import AccessKey, LabArchivesUser
from keyferry.secret import SecretValue
from tests.grants.drive import NOW, finish, page

if TYPE_CHECKING:
    from collections.abc import Generator

URL = "https://api.labarchives.com"
VENDOR = AccessKey(SecretValue("0234wedkfjrtfd34er"), SecretValue("1234567890"))
KEY = AccessKey(SecretValue("AKID-demo"), SecretValue("pwd-demo-123"))
EMAIL, CODE, UID = SecretValue("a+b@x.org"), SecretValue("code-1"), SecretValue("UID1")
USER = (
    "<?xml version='1.0'?><users><fullname>Ada</fullname><notebooks type='array'><notebook><id>nb-9</id>"
    "<name>Lab</name></notebook></notebooks><id>UID1</id><request/><email>a+b@x.org</email>"
    "<auto-login-allowed type='boolean'>true</auto-login-allowed></users>"
)


def xml(text: str, status: int = 200) -> HttpResponse:
    return HttpResponse(status, {"content-type": "application/xml"}, text.encode())


def error(code: int | str, description: str = "no", status: int = 400) -> HttpResponse:
    return xml(
        f"<error><error-code>{code}</error-code><error-description>{description}</error-description></error>", status
    )


def redeem() -> Generator[HttpRequest, HttpResponse, LabArchivesUser]:
    return labarchives.redeem(URL, KEY, EMAIL, CODE, NOW)


def error_of(response: HttpResponse) -> ExchangeError:
    with pytest.raises(ExchangeError) as raised:
        finish(redeem(), response)
    return raised.value


class TestSignature:
    @pytest.mark.parametrize(
        ("key", "method", "expires", "expected"),
        [
            (
                VENDOR,
                "entry_attachment",
                264433207000,
                "mT7pS+KgqlNseR0bo4YLQOVIsgOugMWzlQGllInXS25Q7VpA6lRmL0nUq/UUdrlF+WV7POYE1vcwvN/pnac7bw==",
            ),
            (
                KEY,
                "user_access_info",
                4102444800000,
                "0w1MALKO3YdKMDF25594/Do0iLAQQYDyLPmgQLdU8I94FJKvEb7Z1XQYyLqil+2V6JtfgCsS3lduSAvTm/BlsQ==",
            ),
            (
                KEY,
                "https://broker.example.org/cb",
                4102444800000,
                "pIoJj04c2S7LEL2siX7rbeJ1nHeN8mIUqpo9e8VX5acASQ8MfkvdGEi8llgmJOM/OsJlLyWsfPaLPWxX+6rD6Q==",
            ),
        ],
    )
    def test_known_vectors(self, key: AccessKey, method: str, expires: int, expected: str) -> None:
        signature = labarchives.sign(key, method, expires / 1000)
        assert (signature.value, signature.expires) == (expected, expires)

    def test_prints_nothing(self) -> None:
        signature = labarchives.sign(KEY, "entry_attachment", NOW)
        assert signature.value not in repr(signature)
        assert "AKID" not in repr(signature)

    def test_login_link(self) -> None:
        link = urlsplit(labarchives.login_url(f"{URL}/", KEY, "https://broker.example.org/cb?a=b&c", NOW))
        query = parse_qs(link.query)
        assert (link.netloc, link.path) == ("api.labarchives.com", "/api_user_login")
        assert query["redirect_uri"] == ["https://broker.example.org/cb?a=b&c"]
        assert query["expires"] == [str(int(NOW + 300) * 1000)]
        assert query["sig"] == [labarchives.sign(KEY, "https://broker.example.org/cb?a=b&c", NOW + 300).value]


class TestRedeem:
    def test_request(self) -> None:
        request = next(redeem())
        parts = urlsplit(request.url)
        assert (request.method, parts.path, request.one_time) == ("GET", "/api/users/user_access_info", True)
        assert parts.query.startswith("login_or_email=a%2Bb%40x.org&password=code-1&akid=AKID-demo&expires=")
        assert "code-1" not in repr(request)

    def test_user(self) -> None:
        user = finish(redeem(), xml(USER))
        assert (user.uid, user.email, user.full_name) == (UID, "a+b@x.org", "Ada")
        assert user.may_log_in_alone
        assert "UID1" not in repr(user)

    def test_login_that_its_person_must_attend(self) -> None:
        assert not finish(redeem(), xml(USER.replace(">true<", ">false<"))).may_log_in_alone

    @pytest.mark.parametrize("status", [200, 400, 401, 500])
    @pytest.mark.parametrize(
        ("code", "retry", "reason"),
        [
            (4504, RetryClass.TRANSIENT, Reason.RETRYING),
            (4506, RetryClass.NEEDS_CONFIGURATION, Reason.CLIENT_REJECTED),
            (4514, RetryClass.NEEDS_PERSON, Reason.GRANT_REJECTED),
            (4520, RetryClass.NEEDS_CONFIGURATION, Reason.CLIENT_REJECTED),
            (4533, RetryClass.NEEDS_PERSON, Reason.APPROVAL_REQUIRED),
            (4999, RetryClass.NEEDS_CONFIGURATION, Reason.GRANT_REJECTED),
        ],
    )
    def test_number_decides_whatever_the_status(
        self, status: int, code: int, retry: RetryClass, reason: Reason
    ) -> None:
        refused = error_of(error(code, status=status))
        assert isinstance(refused, Refused)
        assert (refused.retry, refused.reason) == (retry, reason)

    def test_echoed_code_is_cut_out(self) -> None:
        message = error_of(error(4514, "code-1 of a+b@x.org is wrong")).message
        assert "code-1" not in message
        assert "a+b@x.org" not in message
        assert "is wrong" in message

    @pytest.mark.parametrize(
        "response",
        [
            xml(USER[:60]),
            xml("<users><fullname>Ada</fullname></users>"),
            xml("<users><id> </id></users>"),
            xml(f"<users><id>{'x' * 5000}</id></users>"),
            xml("<!DOCTYPE u [<!ENTITY a 'UID2'>]><users><id>&a;</id></users>"),
            xml(""),
            xml(USER, 302),
            page(502),
            page(403),
            HttpResponse(400, {"content-type": "application/json"}, b'{"error": "invalid_grant"}'),
            HttpResponse(200, {}, b"\xff\xfe\x00"),
        ],
        ids=["cut", "no-id", "blank-id", "long-id", "dtd", "empty", "redirect", "502", "403", "oauth", "bytes"],
    )
    def test_anything_else_leaves_the_code_in_doubt(self, response: HttpResponse) -> None:
        unclear = error_of(response)
        assert isinstance(unclear, Ambiguous)
        assert unclear.retry is RetryClass.IN_DOUBT

    @given(st.binary(max_size=300), st.sampled_from([200, 400, 401, 429, 500]))
    def test_no_answer_breaks_it(self, body: bytes, status: int) -> None:
        with pytest.raises(KeyferryError):
            finish(redeem(), HttpResponse(status, {}, body))

    def test_busy_server(self) -> None:
        refused = error_of(HttpResponse(429, {"retry-after": "7"}, b""))
        assert (refused.retry, refused.retry_after) == (RetryClass.TRANSIENT, 7)


class TestUser:
    def test_known_user(self) -> None:
        exchange = labarchives.user_info(URL, KEY, UID, NOW)
        request = next(exchange)
        assert urlsplit(request.url).path == "/api/users/user_info_via_id"
        assert not request.one_time
        assert finish(labarchives.user_info(URL, KEY, UID, NOW), xml(USER)).uid == UID

    def test_answer_without_the_id(self) -> None:
        user = finish(labarchives.user_info(URL, KEY, UID, NOW), xml("<users><email>a@x.org</email></users>"))
        assert (user.uid, user.email) == (UID, "a@x.org")

    def test_uid_is_cut_out_of_errors(self) -> None:
        with pytest.raises(Refused) as refused:
            finish(labarchives.user_info(URL, KEY, UID, NOW), error(4533, "UID1 timed out"))
        assert "UID1" not in refused.value.message


class TestClock:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("<utilities><epoch-time>1800000000</epoch-time></utilities>", 1_800_000_000.0),
            ("<epoch-time>1800000000</epoch-time>", 1_800_000_000.0),
            ("<utilities><epoch-time>1800000000123</epoch-time></utilities>", 1_800_000_000.123),
        ],
    )
    def test_epoch_time(self, text: str, expected: float) -> None:
        exchange = labarchives.epoch_time(URL, KEY, NOW)
        assert "sig=" not in next(exchange).url
        assert finish(labarchives.epoch_time(URL, KEY, NOW), xml(text)) == expected

    @pytest.mark.parametrize("text", ["<epoch-time>soon</epoch-time>", "<epoch-time>-1</epoch-time>", "<a/>", "nan"])
    def test_no_time(self, text: str) -> None:
        with pytest.raises(Ambiguous):
            finish(labarchives.epoch_time(URL, KEY, NOW), xml(text))


class TestMethods:
    @pytest.mark.parametrize("method", ["entry_attachment", "get_tree_level", "add_entry", "max_file_size", "entries"])
    def test_signable(self, method: str) -> None:
        assert labarchives.is_signable(method)
        assert labarchives.may_be_signed(method, [method])
        assert not labarchives.may_be_signed(method, [])

    @pytest.mark.parametrize(
        "method",
        [
            "user_access_info",
            "user_info_via_id",
            "api_user_login",
            "epoch_time",
            "https://evil.example.org/cb",
            "site_license_info",
            "create_user_account",
            "Entries",
            "entry1",
            "entry_attachment\n",
            "",
            "e" * 65,
        ],
    )
    def test_never_signed(self, method: str) -> None:
        """A method that ends in a digit could be read as a shorter one with a longer time."""
        assert not labarchives.is_signable(method)
        assert not labarchives.may_be_signed(method, [method])
