from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from keyferry.errors import PublishError, Reason, RetryClass
from keyferry.io.files import TEMPORARY_PREFIX
from keyferry.io.leftovers import sweep_temporaries
from keyferry.model import ObjectKey
from keyferry.publication import Publication, Published
from keyferry.run.publication_record import RECORD_NAME
from keyferry.run.publisher import FilePublisher
from tests.run import publishing_child

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

KEY = ObjectKey("batch", "nightly")
SIGNING_KEY = b"k" * 32
CANARY = b"canary-7f3a"


def publication(revision: int = 1, *, uid: str = "uid-1", files: Mapping[str, bytes] | None = None) -> Publication:
    return Publication(
        key=KEY,
        uid=uid,
        revision=revision,
        generation=3,
        issued_at=1000.5,
        expires_at=4600.25,
        spec_hash="spec",
        files_hash=f"files-{revision}",
        files={"token": CANARY + b"-%d" % revision, "token.json": b"{}\n"} if files is None else files,
    )


@pytest.fixture
def publisher(tmp_path: Path) -> FilePublisher:
    return FilePublisher(tmp_path / "out", key=SIGNING_KEY)


@pytest.fixture
def directory(publisher: FilePublisher) -> Path:
    return publisher.directory(KEY)


def snapshot(path: Path) -> dict[str, tuple[int, int]]:
    return {
        str(file.relative_to(path)): (file.stat().st_ino, file.stat().st_mtime_ns)
        for file in path.rglob("*")
        if not file.is_dir()
    }


def edit_record(directory: Path, **changes: object) -> None:
    path = directory / RECORD_NAME
    record = json.loads(path.read_bytes())
    record["record"].update(changes)
    path.write_text(json.dumps(record))


def test_publishes_and_observes_what_was_published(publisher: FilePublisher, directory: Path) -> None:
    published = publisher.publish(publication())
    assert published == Published(
        uid="uid-1",
        revision=1,
        generation=3,
        issued_at=1000.5,
        expires_at=4600.25,
        spec_hash="spec",
        files_hash="files-1",
        names=("token", "token.json"),
        intact=True,
    )
    assert publisher.observe(KEY) == published
    assert FilePublisher(directory.parent.parent, key=SIGNING_KEY).observe_all() == {KEY: published}
    assert set(snapshot(directory)) == {"token", "token.json", RECORD_NAME}
    assert {stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()} == {0o600}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_neither_the_record_nor_anything_printed_holds_the_token(publisher: FilePublisher, directory: Path) -> None:
    published = publisher.publish(publication())
    assert CANARY not in (directory / RECORD_NAME).read_bytes()
    assert CANARY.decode() not in repr(publication()) + repr(published)


def test_nothing_is_written_where_nothing_changed(publisher: FilePublisher, directory: Path) -> None:
    publisher.publish(publication())
    before = snapshot(directory)
    assert publisher.publish(publication()) == publisher.observe(KEY)
    assert snapshot(directory) == before


def test_only_what_changed_is_written(publisher: FilePublisher, directory: Path) -> None:
    publisher.publish(publication(1))
    before = snapshot(directory)
    publisher.publish(publication(2))
    after = snapshot(directory)
    assert {name for name in before if before[name] != after[name]} == {"token", RECORD_NAME}
    publisher.publish(dataclasses.replace(publication(2), generation=4))
    assert {name for name in after if after[name] != snapshot(directory)[name]} == {RECORD_NAME}


def test_files_no_longer_named_are_removed_and_foreign_ones_stay(publisher: FilePublisher, directory: Path) -> None:
    publisher.publish(publication(files={"old": b"1", "a/b/c": b"2", "token": b"3"}))
    (directory / "foreign").write_bytes(b"theirs")
    published = publisher.publish(publication(files={"token": b"3"}))
    assert published.names == ("token",)
    assert set(snapshot(directory)) == {"token", "foreign", RECORD_NAME}
    assert not (directory / "a").exists()


@pytest.mark.parametrize("damage", ["deleted", "changed", "truncated", "linked", "directory"])
def test_a_damaged_file_is_noticed_and_put_back(publisher: FilePublisher, directory: Path, damage: str) -> None:
    publisher.publish(publication())
    token = directory / "token"
    original = token.read_bytes()
    if damage == "changed":
        token.write_bytes(original[::-1])
    elif damage == "truncated":
        token.write_bytes(b"")
    else:
        token.unlink()
        if damage == "linked":
            token.symlink_to("token.json")
        elif damage == "directory":
            token.mkdir()
    observed = publisher.observe(KEY)
    assert observed is not None
    assert not observed.intact
    if damage == "directory":
        with pytest.raises(PublishError, match="EISDIR"):
            publisher.publish(publication())
        token.rmdir()
    assert publisher.publish(publication()).intact
    assert token.read_bytes() == original
    assert not token.is_symlink()


def test_a_faithful_copy_is_intact_although_its_inodes_changed(publisher: FilePublisher, directory: Path) -> None:
    publisher.publish(publication())
    out = directory.parent.parent
    shutil.copytree(out, out.with_name("copy"))
    copy = FilePublisher(out.with_name("copy"), key=SIGNING_KEY)
    observed = copy.observe(KEY)
    assert observed is not None
    assert observed.intact
    before = snapshot(copy.directory(KEY))
    copy.publish(publication())
    after = snapshot(copy.directory(KEY))
    assert {name for name in before if before[name] != after[name]} == {RECORD_NAME}


def test_an_edited_record_is_not_believed(publisher: FilePublisher, directory: Path) -> None:
    publisher.publish(publication())
    edit_record(directory, expires_at=9e9)
    observed = publisher.observe(KEY)
    assert observed is not None
    assert not observed.intact
    with pytest.raises(PublishError) as refused:
        publisher.withdraw(KEY)
    assert refused.value.reason is Reason.SECRET_NOT_OWNED
    assert set(snapshot(directory)) == {"token", "token.json", RECORD_NAME}
    assert publisher.publish(publication()).intact
    assert publisher.observe(KEY) == publisher.publish(publication())


def test_an_edited_record_cannot_have_foreign_files_removed(publisher: FilePublisher, directory: Path) -> None:
    publisher.publish(publication())
    (directory / "foreign").write_bytes(b"theirs")
    record = json.loads((directory / RECORD_NAME).read_bytes())["record"]
    edit_record(directory, files={**record["files"], "foreign": record["files"]["token"]})
    publisher.publish(publication(2))
    assert (directory / "foreign").read_bytes() == b"theirs"


def test_a_record_moved_from_another_identity_is_not_ours(publisher: FilePublisher, directory: Path) -> None:
    publisher.publish(publication())
    directory.rename(directory.with_name("other"))
    observed = publisher.observe(ObjectKey("batch", "other"))
    assert observed is not None
    assert not observed.intact
    assert publisher.observe(KEY) is None


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{", '{"record": 1, "signature": 2}', "\xff", "[" * 100_000, '{"record": {}}']
)
def test_a_record_that_is_none_is_left_alone(publisher: FilePublisher, directory: Path, text: str) -> None:
    directory.mkdir(parents=True)
    (directory / RECORD_NAME).write_text(text, encoding="latin-1")
    assert publisher.observe(KEY) is None
    assert publisher.observe_all() == {}
    for action in (lambda: publisher.publish(publication()), lambda: publisher.withdraw(KEY)):
        with pytest.raises(PublishError, match=RECORD_NAME) as refused:
            action()
        assert refused.value.reason is Reason.SECRET_NOT_OWNED
    assert set(snapshot(directory)) == {RECORD_NAME}


def test_somebody_elses_file_is_never_overwritten(publisher: FilePublisher, directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / "token.json").write_bytes(b"theirs")
    with pytest.raises(PublishError, match=r"token\.json was not written by this Keyferry.*Move it away") as refused:
        publisher.publish(publication())
    assert refused.value.reason is Reason.SECRET_NOT_OWNED
    assert refused.value.retry is RetryClass.NEEDS_CONFIGURATION
    assert set(snapshot(directory)) == {"token.json"}
    assert (directory / "token.json").read_bytes() == b"theirs"
    (directory / "token.json").unlink()
    assert publisher.publish(publication()).intact


def test_a_file_that_came_later_under_a_new_name_is_not_overwritten(publisher: FilePublisher, directory: Path) -> None:
    publisher.publish(publication())
    (directory / "extra").write_bytes(b"theirs")
    with pytest.raises(PublishError, match="extra"):
        publisher.publish(publication(2, files={"token": b"1", "extra": b"2"}))
    assert (directory / "token").read_bytes() == CANARY + b"-1"


def test_an_identity_created_anew_takes_its_directory_over(publisher: FilePublisher, directory: Path) -> None:
    publisher.publish(publication(files={"token": b"1", "old": b"2"}))
    published = publisher.publish(publication(uid="uid-2", files={"token": b"3"}))
    assert published.uid == "uid-2"
    assert set(snapshot(directory)) == {"token", RECORD_NAME}


def test_another_installation_with_another_key_is_refused(publisher: FilePublisher, directory: Path) -> None:
    publisher.publish(publication())
    other = FilePublisher(directory.parent.parent, key=b"other" * 8)
    with pytest.raises(PublishError) as refused:
        other.publish(publication(uid="uid-2", files={"different": b""}))
    assert refused.value.reason is Reason.SECRET_NOT_OWNED
    observed = publisher.observe(KEY)
    assert observed is not None
    assert observed.intact


def test_withdrawing_takes_ours_and_nothing_else(publisher: FilePublisher, directory: Path) -> None:
    publisher.withdraw(KEY)
    publisher.publish(publication(files={"token": b"1", ".tiled/tokens/x/access_token": b"2"}))
    (directory / ".tiled" / "tokens" / "x" / "access_token").unlink()
    publisher.withdraw(KEY)
    assert not directory.exists()
    assert publisher.observe(KEY) is None
    publisher.publish(publication())
    (directory / "foreign").write_bytes(b"theirs")
    publisher.withdraw(KEY)
    assert set(snapshot(directory)) == {"foreign"}
    publisher.withdraw(KEY)
    assert set(snapshot(directory)) == {"foreign"}


def test_a_deleted_token_is_missed_and_put_back(publisher: FilePublisher, directory: Path) -> None:
    name = ".tiled/tokens/x/access_token"
    assert not publisher.missing(KEY)
    publisher.publish(publication(files={name: b"1", "tiled.env": b"2"}))
    assert not publisher.missing(KEY)
    (directory / name).unlink()
    fresh = FilePublisher(directory.parent.parent, key=SIGNING_KEY)
    assert publisher.missing(KEY)
    assert fresh.missing(KEY)
    publisher.publish(publication(files={name: b"1", "tiled.env": b"2"}))
    assert not publisher.missing(KEY)
    assert not fresh.missing(KEY)
    assert (directory / name).read_bytes() == b"1"
    shutil.rmtree(directory)
    assert publisher.missing(KEY)
    publisher.publish(publication(files={name: b"1", "tiled.env": b"2"}))
    publisher.withdraw(KEY)
    assert not publisher.missing(KEY)


@pytest.mark.parametrize("name", ["../token", "/token", RECORD_NAME, f"{TEMPORARY_PREFIX}1", f"a/{TEMPORARY_PREFIX}1"])
def test_names_that_are_not_the_resources_to_give_are_refused(
    publisher: FilePublisher, directory: Path, name: str
) -> None:
    with pytest.raises(PublishError):
        publisher.publish(publication(files={"token": b"1", name: b"2"}))
    assert not directory.exists()


def test_a_link_in_the_place_of_the_directory_is_not_followed(publisher: FilePublisher, directory: Path) -> None:
    elsewhere = directory.parent.parent.with_name("elsewhere")
    elsewhere.mkdir()
    directory.parent.mkdir(parents=True)
    directory.symlink_to(elsewhere)
    with pytest.raises(PublishError, match="symbolic link"):
        publisher.publish(publication())
    assert publisher.observe_all() == {}
    assert list(elsewhere.iterdir()) == []


def test_one_unreadable_directory_does_not_hide_the_others(publisher: FilePublisher, directory: Path) -> None:
    published = publisher.publish(publication())
    (directory.parent / "broken" / RECORD_NAME).mkdir(parents=True)
    assert publisher.observe_all() == {KEY: published}


def test_preparing_creates_the_directory_and_sweeps(publisher: FilePublisher, directory: Path) -> None:
    assert publisher.prepare() == 0
    directory.mkdir(parents=True)
    leftover = directory / f"{TEMPORARY_PREFIX}1"
    leftover.write_bytes(b"half")
    os.utime(leftover, (0, 0))
    assert publisher.prepare() == 1
    assert not leftover.exists()


def test_a_disk_that_refuses_keeps_the_last_good_files(tmp_path: Path) -> None:
    out = tmp_path / "disk"
    out.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", out], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here (that needs root): {mounted.stderr.strip()}")
    try:
        publisher = FilePublisher(out, key=SIGNING_KEY)
        publisher.publish(publication(1))
        with pytest.raises(PublishError, match="the disk is full"):
            publisher.publish(publication(2, files={"token": b"x" * 100_000, "token.json": b"{}\n"}))
        observed = publisher.observe(KEY)
        assert observed is not None
        assert (observed.revision, observed.intact) == (1, True)
        assert publisher.publish(publication(3)).revision == 3
        subprocess.run(["mount", "-o", "remount,ro", out], check=True)
        with pytest.raises(PublishError, match="the file system is read-only"):
            publisher.publish(publication(4))
        observed = publisher.observe(KEY)
        assert observed is not None
        assert (observed.revision, observed.intact) == (3, True)
    finally:
        subprocess.run(["umount", out], check=True)


async def test_the_asynchronous_twins_do_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as executor:
        publisher = FilePublisher(tmp_path, key=SIGNING_KEY, executor=executor)
        published = await publisher.apublish(publication())
        assert await publisher.aobserve(KEY) == published
        assert await publisher.aobserve_all() == {KEY: published}
        (tmp_path / "batch" / "nightly" / "token").unlink()
        assert await publisher.amissing([KEY, ObjectKey("batch", "other")]) == [KEY]
        await publisher.awithdraw(KEY)
        assert await publisher.aobserve(KEY) is None


async def test_many_publications_at_once_end_in_one_of_them_whole(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as executor:
        publisher = FilePublisher(tmp_path, key=SIGNING_KEY, executor=executor)
        await asyncio.gather(*(publisher.apublish(publication(revision)) for revision in range(40)))
        observed = await publisher.aobserve(KEY)
        assert observed is not None
        assert observed.intact
        token = (tmp_path / "batch" / "nightly" / "token").read_bytes()
        assert token == CANARY + b"-%d" % observed.revision


class Reader(threading.Thread):
    """Reads one file over and over, and keeps what was wrong with it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.stopped = threading.Event()
        self.reads = 0
        self.wrong: list[str] = []

    def run(self) -> None:
        while not self.stopped.is_set():
            try:
                data = self.path.read_bytes()
            except OSError as error:
                self.wrong.append(str(error))
                continue
            self.reads += 1
            if data != publishing_child.content(int(data[:12] or b"-1")):
                self.wrong.append(f"torn: {len(data)} bytes")


def child(*arguments: str) -> str:
    command = [sys.executable, "-m", "tests.run.publishing_child", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.crash
def test_no_reader_sees_a_torn_or_missing_file_while_the_publisher_is_killed_150_times(tmp_path: Path) -> None:
    publisher = FilePublisher(tmp_path, key=publishing_child.SIGNING_KEY)
    key = publishing_child.KEY
    publisher.publish(publishing_child.publication(key, 1))
    directory = publisher.directory(key)
    readers = [Reader(directory / name) for name in ("token", publishing_child.NESTED)]
    for reader in readers:
        reader.start()
    try:
        child("random", str(tmp_path), "150", "3")
    finally:
        for reader in readers:
            reader.stopped.set()
            reader.join()
    assert [reader.wrong[:3] for reader in readers] == [[], []]
    assert all(reader.reads for reader in readers)
    observed = publisher.observe(key)
    assert observed is not None
    assert observed.revision > 75, "every second child got through a publication before it was killed"
    finish(publisher, key, observed.revision + 1)


@pytest.mark.crash
@pytest.mark.parametrize("first", [True, False])
def test_killed_before_each_change_of_the_file_system_it_goes_on_from_what_it_left(
    tmp_path: Path, *, first: bool
) -> None:
    publisher = FilePublisher(tmp_path, key=publishing_child.SIGNING_KEY)
    if not first:
        publisher.publish(publishing_child.publication(publishing_child.KEY, 0))
    kills = int(child("steps", str(tmp_path), str(int(first))))
    assert kills >= 7
    keys = [ObjectKey("crash", f"first-{step}") for step in range(1, kills + 2)] if first else [publishing_child.KEY]
    for key in keys:
        finish(publisher, key, 1000)


def finish(publisher: FilePublisher, key: ObjectKey, revision: int) -> None:
    """Whatever a killed process left: the next publication is whole, and withdrawing it leaves nothing."""
    published = publisher.publish(publishing_child.publication(key, revision))
    assert publisher.observe(key) == published
    out = publisher.directory(key).parent.parent
    sweep_temporaries(out, older_than=-3600)
    assert set(snapshot(publisher.directory(key))) == {*published.names, RECORD_NAME}
    publisher.withdraw(key)
    assert not publisher.directory(key).exists()
