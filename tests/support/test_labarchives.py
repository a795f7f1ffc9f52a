"""That the emulator is what the unmodified client takes for LabArchives."""

from __future__ import annotations

import threading
import time
from io import BytesIO
from typing import TYPE_CHECKING
from urllib.request import urlopen

import pytest
from labapi import (
    ApiError,
    Attachment,
    AttachmentEntry,
    AuthenticationError,
    Client,
    LabArchivesError,
    NotebookDirectory,
    NotebookPage,
    TextEntry,
)

from tests.support.labarchives import Failure, LabArchives

if TYPE_CHECKING:
    from collections.abc import Iterator

EMAIL = "a+b@x.org"


@pytest.fixture
def server() -> Iterator[LabArchives]:
    with LabArchives() as server:
        yield server


@pytest.fixture
def client(server: LabArchives) -> Iterator[Client]:
    with Client(server.url, server.access_key_id, server.access_password) as client:
        yield client


def code_of(error: pytest.ExceptionInfo[LabArchivesError]) -> object:
    return getattr(error.value, "error_code", None)


class TestLogin:
    def test_code_works_once(self, server: LabArchives, client: Client) -> None:
        code = server.code_for(EMAIL)
        user = client.login(EMAIL, code)
        assert user.id == server.person(EMAIL).uid
        assert [notebook.name for notebook in user.notebooks.values()] == ["Lab"]
        with pytest.raises(AuthenticationError) as refused:
            client.login(EMAIL, code)
        assert code_of(refused) == 4514
        assert server.redemptions == [code]

    def test_code_lapses_after_an_hour(self, server: LabArchives, client: Client) -> None:
        code = server.code_for(EMAIL)
        server.person(EMAIL).codes[code] -= 3601
        with pytest.raises(AuthenticationError) as refused:
            client.login(EMAIL, code)
        assert code_of(refused) == 4514

    def test_wrong_password_of_the_key(self, server: LabArchives) -> None:
        with (
            Client(server.url, server.access_key_id, "wrong") as client,
            pytest.raises(AuthenticationError) as refused,
        ):
            client.login(EMAIL, server.code_for(EMAIL))
        assert code_of(refused) == 4520

    def test_unknown_key(self, server: LabArchives) -> None:
        with Client(server.url, "somebody", "wrong") as client, pytest.raises(AuthenticationError) as refused:
            client.login(EMAIL, server.code_for(EMAIL))
        assert code_of(refused) == 4506

    @pytest.mark.parametrize("offset", [-3600.0, 3600.0])
    def test_clock_that_is_off(self, server: LabArchives, client: Client, offset: float) -> None:
        server.clock_offset = offset
        with pytest.raises(ApiError) as refused:
            client.login(EMAIL, server.code_for(EMAIL))
        assert code_of(refused) == 4504

    def test_session_that_is_over(self, server: LabArchives, client: Client) -> None:
        user = client.login(EMAIL, server.code_for(EMAIL))
        server.person(EMAIL).session_over = True
        with pytest.raises(AuthenticationError) as refused:
            user.get_max_upload_size()
        assert code_of(refused) == 4533
        again = client.login(EMAIL, server.code_for(EMAIL))
        assert again.id == user.id, "a user id stays with its person"
        assert again.get_max_upload_size() > 0

    def test_callback(self, server: LabArchives, client: Client) -> None:
        """The library's own collector takes what the emulator sends the browser to."""
        with client.collect_auth_response(port=0, callback_path="/back/", timeout=30) as collector:
            port = collector._httpd.server_address[1]  # type: ignore[union-attr]
            link = client.generate_auth_url(f"http://127.0.0.1:{port}/back/")
            target = server.callback_of(link, EMAIL)
            visit = threading.Thread(target=lambda: urlopen(target).read())
            visit.start()
            user = collector.wait()
            visit.join()
        assert user.email == EMAIL

    def test_login_link_of_another_page(self, server: LabArchives, client: Client) -> None:
        link = client.generate_auth_url("https://app.example.org/back")
        with pytest.raises(Failure):
            server.callback_of(link.replace("app.example.org", "evil.example.org"), EMAIL)
        server.clock_offset = 1000
        with pytest.raises(Failure) as refused:
            server.callback_of(link, EMAIL)
        assert refused.value.code == 4504


class TestNotebooks:
    def test_pages_entries_and_attachments(self, server: LabArchives, client: Client) -> None:
        notebook = next(iter(client.login(EMAIL, server.code_for(EMAIL)).notebooks.values()))
        folder = notebook.create(NotebookDirectory, "Runs")
        page = folder.create(NotebookPage, "Monday")
        content = bytes(range(256)) * 4096
        given = Attachment(BytesIO(content), "application/octet-stream", "data.bin", "raw")
        page.entries.create(TextEntry, "<p>measured</p>")
        page.entries.create(AttachmentEntry, given)
        with Client(server.url, server.access_key_id, server.access_password) as another:
            again = next(iter(another.login(EMAIL, server.code_for(EMAIL)).notebooks.values()))
            monday = again.traverse("Runs/Monday")
            assert isinstance(monday, NotebookPage)
            text, entry = monday.entries
            assert text.content == "<p>measured</p>"
            assert isinstance(entry, AttachmentEntry)
            assert entry.get_attachment().read() == content
        assert server.called("add_attachment")[0].length == len(content)

    def test_faults_happen_once(self, server: LabArchives, client: Client) -> None:
        user = client.login(EMAIL, server.code_for(EMAIL))
        server.fail_next("max_file_size", 4999)
        with pytest.raises(ApiError) as refused:
            user.get_max_upload_size()
        assert code_of(refused) == 4999
        assert user.get_max_upload_size() > 0

    def test_clock(self, server: LabArchives, client: Client) -> None:
        server.clock_offset = 1000
        told = client.api_get("utilities/epoch_time").findtext("epoch-time")
        assert abs(float(told) - time.time() - 1000) < 60
