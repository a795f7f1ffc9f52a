"""The unmodified LabArchives client under ``keyferry exec`` and beside ``keyferry run``, against the emulator."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.cli.workshop import PATIENCE, Workshop, wait_until
from tests.real.engine_support import documented
from tests.support.labarchives import LabArchives
from tests.support.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLE = Path(__file__).parents[2] / "examples/labarchives/headless.yaml"
EMAIL = "ada@example.org"
REGION = "https://api.labarchives.com"
HOUR = 3600.0
HEADLESS = """\
import os
from labapi import Client

client = Client()
user = client.login(
    os.environ["AUTH_EMAIL"],
    os.environ["AUTH_KEY"],
)
"""
"""The script of the client's own guide for headless work, as it stands there."""
REPORT = "print([notebook.name for notebook in user.notebooks.values()])\n"
WORK = """\
import sys
from io import BytesIO
from labapi import Attachment, AttachmentEntry, NotebookDirectory, NotebookPage, TextEntry

notebook = next(iter(user.notebooks.values()))
folder = notebook.create(NotebookDirectory, "Runs")
content = bytes(range(256)) * (int(sys.argv[1]) * 4096)
pages = 0
print("up", flush=True)
for line in sys.stdin:
    pages += 1
    page = folder.create(NotebookPage, line.strip())
    page.entries.create(TextEntry, "<p>measured & noted</p>")
    page.entries.create(AttachmentEntry, Attachment(BytesIO(content), "application/octet-stream", "data.bin", "raw"))
    text, entry = Client().login("anybody", "anything").notebooks["Lab"].traverse("Runs/" + line.strip()).entries
    assert text.content == "<p>measured & noted</p>"
    assert entry.get_attachment().read() == content
    print("done", flush=True)
"""


@pytest.fixture
def server() -> Iterator[LabArchives]:
    with LabArchives() as server:
        yield server


@pytest.fixture
def lab(workshop: Workshop, server: LabArchives) -> Workshop:
    text = EXAMPLE.read_text()
    assert REGION in text
    workshop.write("resources.yaml", text.replace(REGION, server.url))
    workshop.secret("organization", "access_key_id", server.access_key_id)
    workshop.secret("organization", "access_password", server.access_password)
    workshop.secret("labarchives-ada", "email", EMAIL)
    workshop.secret("labarchives-ada", "code", server.code_for(EMAIL))
    return workshop


def options(lab: Workshop) -> list[str]:
    return ["--resources", str(lab.resources), *lab.broker_options]


def script(lab: Workshop, text: str) -> Path:
    path = lab.base / "script.py"
    path.write_text(text)
    return path


def test_the_page_shows_what_is_tested() -> None:
    shown = documented("labarchives.md")
    by_page = EXAMPLE.with_name("login.yaml")
    assert shown == [*yaml.safe_load_all(EXAMPLE.read_text()), *yaml.safe_load_all(by_page.read_text())]


def test_the_login_through_the_page_is_declared_in_place_of_the_code(lab: Workshop) -> None:
    provider, _ = yaml.safe_load_all(EXAMPLE.read_text())
    login = yaml.safe_load(EXAMPLE.with_name("login.yaml").read_text())
    lab.write("resources.yaml", yaml.safe_dump_all([provider, login]))
    done = lab.call("run", str(lab.resources), "--once", *lab.broker_options)
    assert done.returncode == 3, "a person is needed"


def test_the_headless_script_runs_as_it_stands(lab: Workshop, server: LabArchives) -> None:
    path = script(lab, HEADLESS + REPORT)
    for _ in range(2):
        done = lab.call("exec", "notebook", *options(lab), "--", sys.executable, str(path))
        assert (done.returncode, done.stdout, done.stderr) == (0, "['Lab']\n", "")
    assert len(server.redemptions) == 1, "the code was redeemed by Keyferry, once"
    assert [call.method for call in server.calls] == ["user_access_info", "user_info_via_id", "user_info_via_id"]


def test_it_works_on_for_hours_of_the_servers_clock(lab: Workshop, server: LabArchives) -> None:
    path = script(lab, HEADLESS + WORK)
    with lab.start("exec", "notebook", *options(lab), "--", sys.executable, str(path), "8", stdin=-1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        for hours in (0, 2, 26):
            server.clock_offset = hours * HOUR
            process.stdin.write(f"page {hours}\n")
            process.stdin.flush()
            assert process.stdout.readline() == "done\n", process.stderr and process.stderr.read()
        process.stdin.close()
        assert process.wait(PATIENCE) == 0
    attachments = server.called("add_attachment")
    assert [call.length for call in attachments if not call.error] == [8 << 20] * 3
    assert len(server.redemptions) == 1
    assert {call.error for call in server.calls} == {0, 4504}


def test_what_the_command_sees_is_no_credential(lab: Workshop, server: LabArchives) -> None:
    show = "import json, os, labapi; c = labapi.Client(); u = c.login('x', 'y')"
    show += "; print(json.dumps([u.id, dict(os.environ)]))"
    done = lab.call("exec", "notebook", *options(lab), "--", sys.executable, "-c", show)
    uid, environment = json.loads(done.stdout)
    assert environment["AUTH_EMAIL"] == EMAIL
    assert environment["API_URL"].startswith("http://127.0.0.1:")
    assert environment["API_URL"].endswith("/notebook/labarchives")
    for secret in (server.person(EMAIL).uid, server.access_key_id, server.access_password):
        assert secret not in done.stdout
    assert uid.startswith("keyferry-")
    assert not list(lab.out.glob("**/labarchives.env")), "nobody serves what it would name"


def test_the_user_id_is_not_printed_as_a_token(lab: Workshop, server: LabArchives) -> None:
    for _ in range(2):
        done = lab.call("token", "notebook", *options(lab))
        assert (done.returncode, done.stdout) == (1, "")
        assert "no token" in done.stderr
        assert server.person(EMAIL).uid not in done.stderr


def test_a_login_that_ended_reaches_the_script_and_the_person(lab: Workshop, server: LabArchives) -> None:
    tell = """
from labapi.exceptions import AuthenticationError
import sys
try:
    exec(sys.argv[1])
except AuthenticationError as error:
    print(error.error_code)
"""
    with lab.running():
        assert lab.call("exec", "notebook", "--", sys.executable, "-c", tell, HEADLESS).stdout == ""
        server.person(EMAIL).session_over = True
        assert lab.call("exec", "notebook", "--", sys.executable, "-c", tell, HEADLESS).stdout == "4533\n"
        wait_until(lambda: "ApprovalRequired" in json.dumps(lab.status("notebook")), "word that a person is needed")
        lab.secret("labarchives-ada", "code", server.code_for(EMAIL))
        wait_until(lambda: len(server.redemptions) == 2, "the new login")
        assert lab.call("exec", "notebook", "--", sys.executable, "-c", tell, HEADLESS).stdout == ""


def test_a_variable_that_is_set_already_stays(lab: Workshop) -> None:
    show = "import os; print(os.environ['API_URL'], 'ACCESS_PWD' in os.environ)"
    done = lab.call(
        "exec", "notebook", *options(lab), "--", sys.executable, "-c", show, API_URL="https://own.example.org"
    )
    assert done.stdout == "https://own.example.org False\n"
    assert "API_URL" in done.stderr


def test_a_running_broker_signs_for_exec_and_exec_goes_on_without_it(lab: Workshop, server: LabArchives) -> None:
    path = script(lab, HEADLESS + WORK)
    with (
        lab.running() as broker,
        lab.start("exec", "notebook", "--", sys.executable, str(path), "1", stdin=-1) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.stdin.write("Monday\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n"
        broker.kill()
        broker.wait(PATIENCE)
        wait_until(lambda: lab.call("status").returncode == 0, "somebody who answers")
        process.stdin.write("Tuesday\n")
        process.stdin.close()
        assert process.stdout.readline() == "done\n"
        assert process.wait(PATIENCE) == 0
    assert len(server.redemptions) == 1


def test_run_serves_lasting_endpoints_on_request(lab: Workshop, server: LabArchives) -> None:
    port = free_port()
    path = script(lab, "import os\n" + HEADLESS + REPORT)
    env_file = lab.out / "default/notebook/labarchives.env"
    command = f". {env_file}; export API_URL ACCESS_KEYID ACCESS_PWD AUTH_EMAIL AUTH_KEY; exec {sys.executable} {path}"
    seen = []
    for _ in range(2):
        with lab.running("--loopback", str(port)):
            wait_until(env_file.exists, "the env file")
            done = lab.call_program("sh", "-c", command)
            assert (done.returncode, done.stdout, done.stderr) == (0, "['Lab']\n", "")
            seen.append(env_file.read_text())
    assert seen[0] == seen[1], "programs that run on may use it after a restart"
    with lab.running():
        wait_until(lambda: not env_file.exists(), "the end of a file that names nothing any more")
    assert len(server.redemptions) == 1


@pytest.mark.parametrize(
    "arguments", [["--loopback", "0.0.0.0:7531"], ["--loopback", "x"], ["--loopback", "0", "--once"]]
)
def test_endpoints_are_for_this_machine_alone(lab: Workshop, arguments: list[str]) -> None:
    done = lab.call("run", str(lab.resources), *lab.broker_options, *arguments)
    assert done.returncode == 2
    assert "--loopback" in done.stderr
