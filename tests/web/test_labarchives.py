"""The signing endpoint: what it signs, what it never passes on, and that it streams."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit
from xml.etree import ElementTree as ET

import httpx
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from keyferry.providers.labarchives import AccessKey, sign
from keyferry.secret import SecretValue
from keyferry.web.presented import ACCESS_KEY_ID, placeholder_uid
from keyferry.web.scrub import Scrubber
from keyferry.web.source import Unavailable
from tests.web.conftest import KEY, UID, soon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.web.conftest import Place

FORM = "application/x-www-form-urlencoded"


def code_of(answer: httpx.Response) -> int:
    """Return the number of an error, 0 where it is none."""
    text = ET.fromstring(answer.text).findtext("error-code")  # noqa: S314 - our own answer
    return int(text) if text else 0


def sent(place: Place, index: int = -1) -> dict[str, str]:
    query = urlsplit(place.region.requests[index].raw_path).query
    pairs = parse_qsl(query, keep_blank_values=True)
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


async def test_a_call_is_signed_anew_for_the_real_user(place: Place) -> None:
    uid = placeholder_uid(place.notebook.placeholder)
    url = place.url(call="tree_tools/get_tree_level", nbid="nb-1", name="a b;uid=c", uid=uid)
    answer = await place.http.get(url, headers={"Cookie": "a=b", "X-HTTP-Method-Override": "DELETE"})
    assert (answer.status_code, answer.text) == (200, "<ok/>")
    query = sent(place)
    expected = sign(KEY, "get_tree_level", int(query["expires"]) / 1000)
    assert abs(int(query["expires"]) / 1000 - time.time()) < 120
    assert query["akid"] == KEY.id.reveal()
    assert query["sig"] == sign(KEY, "get_tree_level", (int(query["expires"]) + 0.5) / 1000).value, expected
    assert {name: query[name] for name in ("nbid", "name", "uid")} == {"nbid": "nb-1", "name": "a b;uid=c", "uid": UID}
    assert ";" not in place.region.requests[0].raw_path
    names = {name.lower() for name in place.region.requests[0].headers}
    assert names <= {"host", "user-agent", "accept", "accept-encoding"}


async def test_a_login_is_answered_here(place: Place) -> None:
    answer = await place.http.get(place.url(call="users/user_access_info", login_or_email="x", password="y"))
    assert answer.status_code == 200
    tree = ET.fromstring(answer.text)  # noqa: S314
    assert tree.findtext("id") == placeholder_uid(place.notebook.placeholder)
    assert (tree.findtext("email"), tree.findtext("fullname")) == ("a&b@x.org", "Ada <A>")
    assert tree.findtext("notebooks/notebook/name") == "Lab & co"
    assert UID not in answer.text
    clock = await place.http.get(place.url(call="utilities/epoch_time"))
    assert abs(float(ET.fromstring(clock.text).findtext("epoch-time") or 0) - time.time()) < 60  # noqa: S314
    assert place.region.requests == []


@pytest.mark.parametrize(
    "call",
    [
        "users/user_info_via_id",  # in the provider's list, and never signed all the same
        "users/user_access_info2",
        "users/users_notebooks",
        "users/create_user_account",
        "site_license_tools/detailed_usage_report",
        "utilities/institutional_login_urls",
        "tree_tools/delete_node",
        "entries/user_access_info",
        "utilities/api_user_login",
    ],
)
async def test_login_user_and_foreign_methods_are_never_passed_on(place: Place, call: str) -> None:
    for answer in (await place.http.get(place.url(call=call)), await place.http.post(place.url(call=call))):
        assert answer.status_code == 403
        assert code_of(answer) == 4999
    assert place.region.requests == []


async def test_the_login_page_is_no_endpoint(place: Place) -> None:
    answer = await place.http.get(f"{place.url()}/labarchives/api_user_login?redirect_uri=x&akid=a&expires=1&sig=b")
    assert (answer.status_code, code_of(answer)) == (404, 4999)


@pytest.mark.parametrize("name", ["akid", "expires", "sig"])
@pytest.mark.parametrize("instead", ["", "wrong", "1", "99999999999999999999", "é"])
async def test_only_the_placeholders_signature_is_taken(place: Place, name: str, instead: str) -> None:
    parts = httpx.URL(place.url(call="tree_tools/get_tree_level"))
    answers = [
        await place.http.get(parts.copy_set_param(name, instead)),
        await place.http.get(parts.copy_remove_param(name)),
    ]
    for answer in answers:
        assert code_of(answer) == (4506 if name == "akid" else 4520)
    twice = await place.http.get(f"{parts}&{name}={instead or 'x'}")
    assert code_of(twice) == 4500
    assert place.region.requests == []


async def test_somebody_elses_signature_is_refused_alike(place: Place) -> None:
    seen = set()
    for identity in ("notebook", "bot", "nobody"):
        url = place.url(identity, call="tree_tools/get_tree_level", placeholder="guessed")
        answer = await place.http.get(url)
        seen.add((answer.status_code, answer.text))
    assert len(seen) == 1
    own = place.url("bot", call="tree_tools/get_tree_level", placeholder=place.bot.placeholder.reveal())
    assert code_of(await place.http.get(own)) == 4506, "an identity without a login"


@pytest.mark.parametrize("seconds", [-400, 400])
async def test_an_old_signature_is_refused(place: Place, seconds: float) -> None:
    key = AccessKey(SecretValue(ACCESS_KEY_ID), place.notebook.placeholder)
    signed = sign(key, "get_tree_level", time.time() + seconds)
    answer = await place.http.get(signed.url(f"{place.url()}/labarchives/api/tree_tools/get_tree_level"))
    assert code_of(answer) == 4504


@pytest.mark.parametrize("extra", ["uid=UID-other", "uid=", f"uid={UID}", "uid[]=x", "uid[a]=x", "sig[]=x"])
async def test_no_other_user_can_be_named(place: Place, extra: str) -> None:
    url = place.url(call="entries/add_entry")
    ours = f"uid={placeholder_uid(place.notebook.placeholder)}"
    for query in (extra, f"{ours}&{extra}"):
        answer = await place.http.post(f"{url}&{query}", data={"entry_data": "x"})
        assert code_of(answer) in {4500, 4529}
    body = await place.http.post(f"{url}&{ours}", content=f"a=b&{extra}", headers={"Content-Type": FORM})
    assert (body.status_code, code_of(body)) == (403, 4500)
    assert place.region.requests == []


async def test_a_form_reaches_labarchives_in_one_reading_only(place: Place) -> None:
    url = place.url(call="entries/add_entry", pid="p")
    await place.http.post(
        url, content="entry_data=a;uid=b%3Buid=c%ff&x=", headers={"Content-Type": f"{FORM}; charset=x"}
    )
    assert place.region.bodies == [b"entry_data=a%3Buid%3Db%3Buid%3Dc%FF&x="]
    assert place.region.requests[0].headers["Content-Type"] == FORM


async def test_what_labarchives_would_take_parameters_from_is_not_passed_on(place: Place) -> None:
    url = place.url(call="entries/add_attachment", filename="a.json")
    answer = await place.http.post(url, json={"uid": "UID-other"})
    assert answer.status_code == 200
    assert place.region.requests[0].headers["Content-Type"] == "application/octet-stream"
    multipart = await place.http.post(url, files={"uid": b"UID-other"})
    assert multipart.status_code == 415
    get = await place.http.request("GET", place.url(call="tree_tools/get_tree_level"), content=b"uid=x")
    assert get.status_code == 400
    assert len(place.region.requests) == 1


async def test_uploads_and_downloads_are_streamed(place: Place) -> None:
    """The first piece arrives before the last one is made, in both directions."""
    arrived, taken = asyncio.Event(), asyncio.Event()
    piece, pieces = bytes(range(256)) * 256, 64
    received = []

    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "POST":
            received.append(await request.content.readexactly(len(piece)))
            arrived.set()
            received.append(await request.content.read())
            return web.Response(text="<ok/>", content_type="application/xml")
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream", "Set-Cookie": "a=b"})
        response.content_length = len(piece) * 2
        await response.prepare(request)
        await response.write(piece)
        await soon(taken)
        await response.write(piece)
        return response

    async def upload() -> AsyncIterator[bytes]:
        yield piece
        await soon(arrived)
        for _ in range(pieces - 1):
            yield piece

    place.region.handler = serve
    length = {"Content-Length": str(len(piece) * pieces)}
    url = place.url(call="entries/add_attachment", filename="big")
    answer = await place.http.post(url, content=upload(), headers=length)
    assert answer.text == "<ok/>"
    assert b"".join(received) == piece * pieces
    assert place.region.requests[0].headers["Content-Length"] == length["Content-Length"]
    assert "Content-Type" not in place.region.requests[0].headers
    async with place.http.stream("GET", place.url(call="entries/entry_attachment", eid="1")) as stream:
        assert "Set-Cookie" not in stream.headers
        content = b""
        async for part in stream.aiter_raw():
            content += part
            taken.set()
    assert content == piece * 2


async def test_an_answer_that_breaks_off_does_not_look_whole(place: Place) -> None:
    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/xml"})
        await response.prepare(request)
        await response.write(b"<half>" + b"x" * 100_000)
        assert request.transport is not None
        request.transport.abort()
        return response

    place.region.handler = serve
    with pytest.raises(httpx.RemoteProtocolError):
        await place.http.get(place.url(call="tree_tools/get_tree_level"))


async def test_answers_hold_neither_the_user_id_nor_the_signature(place: Place) -> None:
    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        query = dict(parse_qsl(urlsplit(request.raw_path).query))
        status = int(query.pop("status"))
        raw = request.raw_path.replace("&", "&amp;")
        text = f"<error><request>{raw}</request><id>{UID.replace('&', '&amp;')}</id><s>{query['sig']}</s></error>"
        return web.Response(status=status, text=text, content_type="application/xml")

    place.region.handler = serve
    uid = placeholder_uid(place.notebook.placeholder)
    for status in ("200", "400"):
        answer = await place.http.get(place.url(call="tree_tools/get_tree_level", uid=uid, status=status))
        assert answer.status_code == int(status)
        assert f"<id>{uid}</id>" in answer.text
        query = sent(place)
        for secret in (UID, "UID real", "UID+real", "UID%20real", query["sig"]):
            assert secret not in answer.text


async def test_a_clock_that_is_off_is_corrected_and_the_call_made_again(place: Place) -> None:
    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        place.region.bodies.append(await request.read())
        if place.notebook.clock_corrections:
            return web.Response(text="<ok/>", content_type="application/xml")
        return web.Response(status=400, text="<error><error-code>4504</error-code></error>")

    place.region.handler = serve
    form = await place.http.post(place.url(call="entries/add_entry"), data={"entry_data": "x"})
    assert (form.status_code, form.text) == (200, "<ok/>")
    assert place.region.bodies == [b"entry_data=x"] * 2
    place.notebook.clock_corrections = 0
    upload = await place.http.post(place.url(call="entries/add_attachment"), content=b"once")
    assert code_of(upload) == 4504, "its bytes are gone; the next one is signed right"
    assert place.notebook.clock_corrections == 1


async def test_a_login_that_ended_is_told(place: Place) -> None:
    async def serve(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=401, text="<error><error-code>4533</error-code></error>")

    place.region.handler = serve
    answer = await place.http.get(place.url(call="tree_tools/get_tree_level"))
    assert (answer.status_code, code_of(answer), place.notebook.refused_logins) == (401, 4533, 1)
    place.notebook.trouble = Unavailable("log in again", person=True)
    for call in ("tree_tools/get_tree_level", "users/user_access_info"):
        answer = await place.http.get(place.url(call=call))
        assert (answer.status_code, code_of(answer)) == (401, 4533)
    place.notebook.trouble = Unavailable("wait")
    assert (await place.http.get(place.url(call="tree_tools/get_tree_level"))).status_code == 503


@pytest.mark.parametrize(
    ("status", "headers"), [(302, {"Location": "http://127.0.0.1:1/"}), (200, {"Content-Encoding": "br"})]
)
async def test_odd_answers_are_not_followed(place: Place, status: int, headers: dict[str, str]) -> None:
    async def serve(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=status, headers=headers, body=b"x")

    place.region.handler = serve
    answer = await place.http.get(place.url(call="tree_tools/get_tree_level"))
    assert (answer.status_code, code_of(answer)) == (502, 4999)
    assert "Location" not in answer.headers


@pytest.mark.parametrize("region", ["http://127.0.0.1:1", "http://169.254.169.254", "http://example.org"])
async def test_a_region_that_cannot_be_asked(place: Place, region: str) -> None:
    place.notebook.region = region
    answer = await place.http.get(place.url(call="tree_tools/get_tree_level"))
    assert (answer.status_code, code_of(answer)) == (502, 4999)
    assert "sig" not in answer.text


@given(st.lists(st.sampled_from([b"secret-uid", b"secret", b"-", b"se", b"cret-", b"uid", b"x&amp;y", b"x", b"&y"])))
def test_a_secret_is_found_wherever_the_stream_is_cut(parts: list[bytes]) -> None:
    scrubber = Scrubber({"secret-uid": "placeholder", "x&y": "***"})
    scrubbed = b"".join([*(scrubber.feed(part) for part in parts), scrubber.end()])
    expected = b"".join(parts).replace(b"secret-uid", b"placeholder")
    assert scrubbed == expected.replace(b"x&amp;y", b"***").replace(b"x&y", b"***")
