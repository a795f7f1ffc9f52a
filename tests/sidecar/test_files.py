from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

import pytest

from keyferry.errors import PublishError
from keyferry.io.files import TEMPORARY_PREFIX
from keyferry.sidecar.files import PodFiles

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TILED = ".tiled/tokens/https%3A%2F%2Ftiled/access_token"


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    before = os.umask(0o077)
    yield tmp_path
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_any_user_of_the_pod_may_read_and_none_write_but_for_the_clients_own(root: Path) -> None:
    files = PodFiles(root).of("nightly")
    files.apply({"token": b"1", "conf/app.ini": b"2", TILED: b"3"})
    assert [mode(root / "nightly" / part) for part in ("", "conf", ".tiled", ".tiled/tokens")] == [
        0o755,
        0o755,
        0o777,
        0o777,
    ]
    assert [mode(root / "nightly" / part) for part in ("token", "conf/app.ini", TILED)] == [0o644] * 3


def test_what_is_gone_is_removed_and_what_clients_wrote_is_left(root: Path) -> None:
    files = PodFiles(root).of("nightly")
    files.apply({"token": b"1", "conf/app.ini": b"2", TILED: b"3", ".aiod/config.toml": b"4"})
    (root / "nightly/.tiled/cache.db").write_text("the client's")
    kept = [(root / "nightly" / name).stat().st_ino for name in (".tiled", ".aiod")]
    files.apply({"token": b"5"})
    assert (root / "nightly/token").read_bytes() == b"5"
    assert [path.name for path in (root / "nightly/.tiled").iterdir()] == ["cache.db"]
    assert [(root / "nightly" / name).stat().st_ino for name in (".tiled", ".aiod")] == kept, (
        "containers have these mounted"
    )
    assert not (root / "nightly/conf/app.ini").exists()


def test_what_an_earlier_process_left_is_found(root: Path) -> None:
    pod = PodFiles(root)
    pod.of("nightly").apply({"old": b"1", "conf/old": b"1", TILED: b"1"})
    (root / "nightly" / f"{TEMPORARY_PREFIX}x").write_text("half")
    placeholder = pod.prepare()
    assert not list(root.rglob(f"{TEMPORARY_PREFIX}*"))
    pod.of("nightly", ["old", TILED]).apply({"new": b"2"})
    assert [path for path in (root / "nightly").rglob("*") if path.is_file()] == [root / "nightly/new"]
    assert PodFiles(root).prepare() == placeholder
    assert mode(root / ".keyferry/placeholder") == 0o644
    (root / ".keyferry/placeholder").write_text("short")
    assert len(PodFiles(root).prepare().reveal()) == 43


def test_a_failing_write_leaves_all_files_of_the_last_answer(root: Path) -> None:
    files = PodFiles(root).of("nightly")
    files.apply({"a": b"1", "b": b"1"})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(PublishError, match="What was there"):
            files.apply({"a": b"2", "b": b"2" * 5000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [(root / "nightly" / name).read_bytes() for name in "ab"] == [b"1", b"1"]
    assert sorted(path.name for path in (root / "nightly").iterdir()) == ["a", "b"]
    files.apply({"a": b"2", "b": b"2" * 5000})
    assert (root / "nightly/b").stat().st_size == 5000


def test_what_a_client_deletes_comes_back(root: Path) -> None:
    files = PodFiles(root).of("nightly")
    files.apply({"token": b"1", TILED: b"1"})
    assert files.may_go_missing
    assert files.put_back() == []
    (root / "nightly" / TILED).unlink()
    assert files.put_back() == [TILED]
    assert (root / "nightly" / TILED).read_bytes() == b"1"
    assert mode(root / "nightly" / TILED) == 0o644
    files.apply({"token": b"1"})
    assert not files.may_go_missing


def test_no_link_leads_elsewhere(root: Path) -> None:
    elsewhere = root / "elsewhere"
    elsewhere.mkdir()
    files = PodFiles(root / "pod").of("nightly")
    files.apply({TILED: b"1"})
    (root / "pod/nightly" / TILED).unlink()
    (root / "pod/nightly/.tiled/tokens/https%3A%2F%2Ftiled").rmdir()
    (root / "pod/nightly/.tiled/tokens/https%3A%2F%2Ftiled").symlink_to(elsewhere)
    with pytest.raises(PublishError, match="symbolic link"):
        files.put_back()
    assert list(elsewhere.iterdir()) == []
