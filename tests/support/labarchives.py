"""An emulator of the LabArchives API, as far as logins, signatures, notebooks and attachments go.

LabArchives itself cannot be run, so what this knows comes from its documents and from the unmodified client (`labapi`),
which the tests run against it: the signature over key id, method and time with its published vector, two minutes of
allowance, errors as XML with a number, one-hour codes that work once, the callback login, and streamed attachments.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import secrets
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit
from xml.sax.saxutils import escape

from tests.support.web_thread import OwnedHandler, WebThread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ALLOWANCE = 120.0
"""Seconds by which a request's time may lie behind or ahead of the server's (a login link's: five minutes ahead)."""
LINK_AHEAD = 300.0
CODE_LIFETIME = 3600.0
CHUNK = 64 * 1024
DESCRIPTIONS = {
    4500: "The request is missing a parameter",
    4504: "The request expires time is too old or too far ahead",
    4506: "The access key id is not valid",
    4514: "The login or password is incorrect",
    4520: "The signature is not valid",
    4529: "The user id is not valid",
    4533: "The session timed out; the user must log in again",
    4999: "The method failed",
}


@dataclass(slots=True)
class Call:
    """One request: its method, its parameters, and what it was answered."""

    method: str
    parameters: Mapping[str, str]
    length: int = 0
    """Bytes of the body."""
    error: int = 0


@dataclass(slots=True)
class Person:
    """Somebody with an account."""

    email: str
    name: str = "Ada Example"
    uid: str = ""
    codes: dict[str, float] = field(default_factory=dict)
    """Codes that still work, and until when."""
    session_over: bool = False
    auto_login_allowed: bool = True


@dataclass(slots=True)
class Node:
    """A folder or page."""

    tree_id: str
    parent: str
    name: str
    page: bool
    entries: list[Entry] = field(default_factory=list)


@dataclass(slots=True)
class Entry:
    """An entry of a page; attachments keep their bytes."""

    eid: str
    part_type: str
    text: str = ""
    data: bytes = b""
    file_name: str = ""
    content_type: str = "application/octet-stream"


class Failure(Exception):
    """An answer that is an error."""

    def __init__(self, code: int) -> None:
        super().__init__(DESCRIPTIONS[code])
        self.code = code


class LabArchives(WebThread):
    """The emulator, in a thread of this process; ``with`` starts and ends it."""

    def __init__(self, access_key_id: str = "AKID-demo", access_password: str = "pwd-demo-123") -> None:
        self.access_key_id = access_key_id
        self.access_password = access_password
        self.clock_offset = 0.0
        """Seconds by which this server's clock is ahead."""
        self.error_status = HTTPStatus.BAD_REQUEST
        """Status of errors, which is not documented."""
        self.people: dict[str, Person] = {}
        self.calls: list[Call] = []
        self.after_redemption: Callable[[], None] | None = None
        """Run when a code was used up and nothing was answered yet."""
        self.redemptions: list[str] = []
        """The codes that were redeemed, in order."""
        self.notebook = "nb-1"
        self.nodes: dict[str, Node] = {}
        self._ids = itertools.count(1)
        self._lock = threading.RLock()
        self._faults: dict[str, deque[Callable[[], None]]] = {}
        super().__init__(_Handler)

    @property
    def url(self) -> str:
        """Base URL of the region, without ``/api``."""
        return self.address

    def now(self) -> float:
        """Return the server's time, in Unix seconds."""
        return time.time() + self.clock_offset

    # --- what a test arranges -----------------------------------------------------------------------------------------

    def person(self, email: str) -> Person:
        """Return the person with this address, who is made at the first call."""
        with self._lock:
            return self.people.setdefault(email, Person(email))

    def code_for(self, email: str) -> str:
        """Issue a one-hour code, as the page for external applications does."""
        code = secrets.token_urlsafe(18)
        with self._lock:
            self.person(email).codes[code] = self.now() + CODE_LIFETIME
        return code

    def fail_next(self, method: str, code: int) -> None:
        """Answer the next call of ``method`` with an error."""

        def fail() -> None:
            raise Failure(code)

        self.before_answer(method, fail)

    def before_answer(self, method: str, action: Callable[[], None]) -> None:
        """Run ``action`` at the next call of ``method``, between the check of its signature and its work."""
        with self._lock:
            self._faults.setdefault(method, deque()).append(action)

    def called(self, method: str) -> list[Call]:
        """Return the calls of one method."""
        with self._lock:
            return [call for call in self.calls if call.method == method]

    def callback_of(self, login_url: str, email: str) -> str:
        """Log ``email`` in at the page behind ``login_url``; return where LabArchives would send the browser.

        Raises Failure where the page would refuse the link.
        """
        parts = urlsplit(login_url)
        query = dict(parse_qsl(parts.query))
        if parts.path != "/api_user_login":
            raise Failure(4500)
        redirect = query.get("redirect_uri", "")
        self.check_signature(redirect, query, ahead=LINK_AHEAD)
        target = urlsplit(redirect)
        found = urlencode([*parse_qsl(target.query), ("email", email), ("auth_code", self.code_for(email))])
        return urlunsplit(target._replace(query=found))

    # --- what it answers ----------------------------------------------------------------------------------------------

    def check_signature(self, method: str, query: Mapping[str, str], *, ahead: float = 0.0) -> None:
        """Raise Failure unless the request was signed with the access key at about this time."""
        if query.get("akid") != self.access_key_id:
            raise Failure(4506)
        expires = query.get("expires", "")
        message = f"{self.access_key_id}{method}{expires}".encode()
        digest = hmac.new(self.access_password.encode(), message, hashlib.sha512).digest()
        if not hmac.compare_digest(base64.b64encode(digest).decode(), query.get("sig", "")):
            raise Failure(4520)
        distance = int(expires) / 1000 - self.now()
        if not -ALLOWANCE <= distance <= ALLOWANCE + ahead:
            raise Failure(4504)

    def answer(self, method: str, query: Mapping[str, str], body: bytes, content_type: str) -> str | Entry:
        """Return the XML of a call, or the entry whose attachment it wants. Raises Failure."""
        if method == "epoch_time":
            return f"<utilities><epoch-time>{self.now():.0f}</epoch-time></utilities>"
        self.check_signature(method, query)
        with self._lock:
            pending = self._faults.get(method)
            action = pending.popleft() if pending else None
        if action is not None:
            action()
        with self._lock:
            if method == "user_access_info":
                return self._redeem(query)
            person = self._by_uid(query.get("uid", ""))
            if person.session_over:
                raise Failure(4533)
            return _METHODS.get(method, LabArchives._unknown)(self, person, query, body, content_type)

    def _redeem(self, query: Mapping[str, str]) -> str:
        person = self.people.get(query.get("login_or_email", ""))
        code = query.get("password", "")
        until = person.codes.pop(code, 0.0) if person is not None else 0.0
        if person is None or until < self.now():
            raise Failure(4514)
        self.redemptions.append(code)
        person.uid = person.uid or f"UID{secrets.token_hex(12)}"
        person.session_over = False
        if self.after_redemption is not None:
            self.after_redemption()
        return self._about(person, {}, b"", "")

    def _by_uid(self, uid: str) -> Person:
        for person in self.people.values():
            if uid and person.uid == uid:
                return person
        raise Failure(4529)

    def _about(self, person: Person, _query: Mapping[str, str], _body: bytes, _type: str) -> str:
        allowed = "true" if person.auto_login_allowed else "false"
        notebook = (
            f"<notebook><is-default type='boolean'>true</is-default><id>{self.notebook}</id><name>Lab</name></notebook>"
        )
        return (
            f"<users><fullname>{escape(person.name)}</fullname><id>{person.uid}</id><request/>"
            f"<email>{escape(person.email)}</email><auto-login-allowed type='boolean'>{allowed}</auto-login-allowed>"
            f"<notebooks type='array'>{notebook}</notebooks></users>"
        )

    def _level(self, _person: Person, query: Mapping[str, str], _body: bytes, _type: str) -> str:
        found = [node for node in self.nodes.values() if node.parent == query.get("parent_tree_id")]
        rows = "".join(
            f"<level-node><is-page type='boolean'>{str(node.page).lower()}</is-page><tree-id>{node.tree_id}</tree-id>"
            f"<display-text>{escape(node.name)}</display-text></level-node>"
            for node in found
        )
        return f"<tree-tools><level-nodes type='array'>{rows}</level-nodes></tree-tools>"

    def _insert(self, _person: Person, query: Mapping[str, str], _body: bytes, _type: str) -> str:
        node = Node(
            f"tree-{next(self._ids)}",
            query["parent_tree_id"],
            query["display_text"],
            page=query["is_folder"] != "true",
        )
        self.nodes[node.tree_id] = node
        return f"<tree-tools><node><tree-id>{node.tree_id}</tree-id></node></tree-tools>"

    def _entries(self, _person: Person, query: Mapping[str, str], _body: bytes, _type: str) -> str:
        page = self.nodes.get(query.get("page_tree_id", ""))
        if page is None:
            raise Failure(4500)
        rows = "".join(
            f"<entry><eid>{entry.eid}</eid><part-type>{entry.part_type}</part-type>"
            f"<entry-data>{escape(entry.text)}</entry-data>"
            f"<attach-file-name>{escape(entry.file_name)}</attach-file-name></entry>"
            for entry in page.entries
        )
        return f"<tree-tools><entries type='array'>{rows}</entries></tree-tools>"

    def _add_entry(self, _person: Person, query: Mapping[str, str], body: bytes, _type: str) -> str:
        text = dict(parse_qsl(body.decode())).get("entry_data", "")
        return self._added(query, Entry(f"entry-{next(self._ids)}", query["part_type"], text))

    def _add_attachment(self, _person: Person, query: Mapping[str, str], body: bytes, content_type: str) -> str:
        entry = Entry(f"entry-{next(self._ids)}", "Attachment", query.get("caption", ""), body, query["filename"])
        entry.content_type = content_type or entry.content_type
        return self._added(query, entry)

    def _added(self, query: Mapping[str, str], entry: Entry) -> str:
        page = self.nodes.get(query.get("pid", ""))
        if page is None:
            raise Failure(4500)
        page.entries.append(entry)
        return f"<entries><entry><eid>{entry.eid}</eid></entry></entries>"

    def _attachment(self, _person: Person, query: Mapping[str, str], _body: bytes, _type: str) -> Entry:
        for node in self.nodes.values():
            for entry in node.entries:
                if entry.eid == query.get("eid"):
                    return entry
        raise Failure(4500)

    def _max_file_size(self, _person: Person, _query: Mapping[str, str], _body: bytes, _type: str) -> str:
        return "<users><max-file-size>4194304000</max-file-size></users>"

    def _unknown(self, _person: Person, _query: Mapping[str, str], _body: bytes, _type: str) -> str:
        raise Failure(4999)

    def record(self, call: Call) -> None:
        """Take note of a call."""
        with self._lock:
            self.calls.append(call)


_METHODS: dict[str, Callable[[LabArchives, Person, Mapping[str, str], bytes, str], str | Entry]] = {
    "user_info_via_id": LabArchives._about,
    "get_tree_level": LabArchives._level,
    "insert_node": LabArchives._insert,
    "get_entries_for_page": LabArchives._entries,
    "add_entry": LabArchives._add_entry,
    "add_attachment": LabArchives._add_attachment,
    "entry_attachment": LabArchives._attachment,
    "max_file_size": LabArchives._max_file_size,
}


class _Handler(OwnedHandler[LabArchives], BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        body = self._body()
        call = Call(parts.path.rsplit("/", 1)[-1], dict(parse_qsl(parts.query, keep_blank_values=True)), len(body))
        emulator = self.owner
        emulator.record(call)
        try:
            if not parts.path.startswith("/api/"):
                self._send(HTTPStatus.NOT_FOUND, b"<html><body>Not here</body></html>", "text/html")
                return
            found = emulator.answer(call.method, call.parameters, body, self.headers.get("Content-Type", ""))
        except Failure as failure:
            call.error = failure.code
            text = (
                f"<error><request/><error-code>{failure.code}</error-code>"
                f"<error-description>{escape(str(failure))}</error-description></error>"
            )
            self._send(emulator.error_status, text.encode(), "application/xml")
            return
        if isinstance(found, Entry):
            self._stream(found)
        else:
            self._send(HTTPStatus.OK, f'<?xml version="1.0" encoding="UTF-8"?>{found}'.encode(), "application/xml")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, entry: Entry) -> None:
        """Send an attachment in chunks, without saying how long it is."""
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", entry.content_type)
        self.send_header("Content-Disposition", f'attachment; filename="{entry.file_name}"')
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for start in range(0, len(entry.data), CHUNK):
            chunk = entry.data[start : start + CHUNK]
            self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")
