from __future__ import annotations

import json
import logging
import os
from typing import TYPE_CHECKING

import pytest

from keyferry.cli.options import PlainFormatter, set_up_logging
from keyferry.engine import Event, Level
from keyferry.errors import Reason
from keyferry.model import ObjectKey
from keyferry.run.json_lines import WAITING_LINES, JsonLines, JsonLogHandler, LineWriter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = ObjectKey("batch", "nightly")


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return tmp_path / "lines"


@pytest.fixture
def descriptor(written: Path) -> Iterator[int]:
    with written.open("wb") as file:
        yield file.fileno()


@pytest.fixture
def root_logger() -> Iterator[None]:
    """Put the logging of the process back as it was."""
    root, ours = logging.getLogger(), logging.getLogger("keyferry")
    before = (list(root.handlers), root.level, ours.level)
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


def test_an_event_is_one_line(written: Path, descriptor: int) -> None:
    writer = LineWriter(descriptor)
    listener = JsonLines(writer)
    listener.event(Event(Level.WARNING, "failed", Reason.RETRYING, "first\nsecond é", KEY, 1.0, 2.5))
    listener.event(Event(Level.DEBUG, "detail", Reason.ISSUED, "unseen", KEY))
    writer.close()
    assert written.read_text().count("\n") == 1
    line = json.loads(written.read_text())
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning",
        "event": "failed",
        "namespace": "batch",
        "identity": "nightly",
        "reason": "Retrying",
        "message": "first\nsecond é",
        "expirationTime": "1970-01-01T00:00:01.000Z",
        "nextAttemptTime": "1970-01-01T00:00:02.500Z",
    }


@pytest.mark.usefixtures("root_logger")
def test_the_log_takes_the_same_form_and_libraries_show_no_details(written: Path, descriptor: int) -> None:
    writer = LineWriter(descriptor)
    set_up_logging(JsonLogHandler(writer), Level.DEBUG)
    logging.getLogger("keyferry.somewhere").debug("ours")
    for name in ("httpx", "aiohttp.client", "asyncio"):
        logging.getLogger(name).info("POST password=canary")
        logging.getLogger(name).debug("POST password=canary")
    try:
        raise ValueError("canary")  # noqa: TRY301 - what a library might do
    except ValueError:
        logging.getLogger("keyferry").exception("it failed")
    writer.close()
    assert "canary" not in written.read_text()
    first, second = map(json.loads, written.read_text().splitlines())
    assert (first["level"], first["event"], first["message"]) == ("debug", "log", "ours")
    assert (second["level"], second["message"]) == ("error", "it failed (ValueError)")


def test_a_plain_line_names_an_exception_by_its_type_only() -> None:
    error = ValueError("canary")
    record = logging.LogRecord("keyferry", logging.ERROR, "", 0, "it %s", ("failed",), (ValueError, error, None))
    assert PlainFormatter("%(levelname)s: %(message)s").format(record) == "ERROR: it failed (ValueError)"


@pytest.mark.timeout(300)
def test_a_reader_that_does_not_read_blocks_nobody_and_is_told_what_it_missed() -> None:
    reading, writing = os.pipe()
    writer = LineWriter(writing)
    for _ in range(WAITING_LINES * 2):
        writer.write("x" * 100)
    with os.fdopen(reading) as reader:
        lines = iter(reader.readline, "")
        assert next(lines) == "x" * 100 + "\n"
        assert any("had no reader" in line for line in lines)
        for line in lines:
            if line == "the last\n":
                break
            writer.write("the last")  # there may be no room for it yet: each line that is read makes some
    writer.write("nobody reads any more")
    writer.close()
    os.close(writing)
