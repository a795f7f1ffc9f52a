from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keyferry.errors import PublishError, RetryClass
from keyferry.io.disk_errors import explain
from keyferry.io.files import (
    TEMPORARY_PREFIX,
    Folder,
    read_file,
    split_relative,
    subfolders,
    write_file,
)
from keyferry.io.leftovers import sweep_temporaries

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    with Folder.open(tmp_path / "out") as opened:
        yield opened


def names(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir())


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_file_is_private_and_whole(folder: Folder) -> None:
    status = folder.write("token", b"abc")
    path = folder.path / "token"
    assert path.read_bytes() == b"abc"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (status.st_ino, status.st_mtime_ns) == (path.stat().st_ino, path.stat().st_mtime_ns)
    assert names(folder.path) == ["token"]


def test_the_mode_is_as_asked_whatever_the_umask(folder: Folder) -> None:
    before = os.umask(0o177)
    try:
        folder.write("token", b"abc", mode=0o644)
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder.path / "token").stat().st_mode) == 0o644


def test_a_replaced_file_is_another_inode_so_that_open_readers_keep_the_old_one(folder: Folder) -> None:
    folder.write("token", b"old")
    with (folder.path / "token").open("rb") as reader:
        folder.write("token", b"new")
        assert reader.read() == b"old"
    assert folder.read("token") == b"new"


def test_directories_on_the_way_are_created_private(folder: Folder) -> None:
    folder.write(".tiled/tokens/x/access_token", b"abc")
    for depth in (".tiled", ".tiled/tokens", ".tiled/tokens/x"):
        assert stat.S_IMODE((folder.path / depth).stat().st_mode) == 0o700
    assert folder.read(".tiled/tokens/x/access_token") == b"abc"


@pytest.mark.parametrize("name", ["", "/etc/x", "..", "../x", "a/../b", "a//b", "a/", "./a", "a\0b"])
def test_names_that_leave_the_directory_are_refused(folder: Folder, name: str) -> None:
    with pytest.raises(PublishError, match="not a plain relative path"):
        folder.write(name, b"abc")
    assert names(folder.path.parent) == []


def test_a_planted_link_is_never_followed(folder: Folder, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    victim = elsewhere / "victim"
    victim.write_bytes(b"precious")
    (folder.path / "sub").symlink_to(elsewhere)
    (folder.path / "file").symlink_to(victim)
    with pytest.raises(PublishError, match="symbolic link"):
        folder.write("sub/victim", b"overwritten")
    with pytest.raises(PublishError, match="symbolic link"):
        folder.remove("sub/victim")
    with pytest.raises(PublishError, match="symbolic link"):
        folder.read("file")
    folder.write("file", b"replaces the link itself")
    assert victim.read_bytes() == b"precious"
    assert names(elsewhere) == ["victim"]
    assert not (folder.path / "file").is_symlink()


def test_the_root_may_be_a_link_for_it_is_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_file(tmp_path / "link", "token", b"abc")
    assert (tmp_path / "real" / "token").read_bytes() == b"abc"


def test_a_directory_in_the_place_of_a_file_stays_and_nothing_is_left_behind(folder: Folder) -> None:
    (folder.path / "token").mkdir()
    with pytest.raises(PublishError, match=r"Cannot write .*token: a directory has that name \(EISDIR\).*stays"):
        folder.write("token", b"abc")
    assert list(folder.path.iterdir()) == [folder.path / "token"]


def test_reading_is_bounded_and_takes_regular_files_only(folder: Folder) -> None:
    folder.write("large", b"x" * 11)
    os.mkfifo(folder.path / "pipe")
    (folder.path / "directory").mkdir()
    assert folder.read("absent") is None
    assert folder.read("absent/below") is None
    assert folder.read("large", limit=11) == b"x" * 11
    with pytest.raises(PublishError, match="longer than 10 bytes"):
        folder.read("large", limit=10)
    for name in ("pipe", "directory"):
        with pytest.raises(PublishError, match="not a regular file"):
            folder.read(name)


def test_read_file_reads_by_path(tmp_path: Path) -> None:
    write_file(tmp_path, "a/b", b"abc")
    assert read_file(tmp_path / "a" / "b") == b"abc"
    assert read_file(tmp_path / "a" / "none") is None
    assert read_file(tmp_path / "none" / "b") is None


def test_removing_takes_emptied_directories_along_and_no_others(folder: Folder) -> None:
    folder.write("a/b/c", b"1")
    folder.write("a/d", b"2")
    assert folder.remove("a/b/c") is True
    assert folder.remove("a/b/c") is False
    assert names(folder.path) == ["a/d"]
    assert not (folder.path / "a" / "b").exists()
    (folder.path / "a" / "e").mkdir()
    (folder.path / "a" / "e" / "foreign").write_bytes(b"")
    assert folder.remove("a/d") is True
    assert names(folder.path) == ["a/e/foreign"]


def test_opening_what_is_not_there_without_creating_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Folder.open(tmp_path / "none", create=False)
    with pytest.raises(FileNotFoundError):
        Folder.open(tmp_path, "a/b", create=False)
    assert list(tmp_path.iterdir()) == []


def test_no_descriptor_is_left_open(folder: Folder) -> None:
    (folder.path / "link").symlink_to("/")
    before = open_descriptors()
    folder.write("a/b/c", b"1")
    folder.read("a/b/c")
    folder.remove("a/b/c")
    for name in ("link/x", "../x"):
        with pytest.raises(PublishError):
            folder.write(name, b"")
    with pytest.raises(PublishError):
        folder.read("link")
    assert open_descriptors() == before


def test_only_old_temporaries_are_swept_and_no_link_is_followed(tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    old, young, foreign = (f"{TEMPORARY_PREFIX}1", f"{TEMPORARY_PREFIX}2", "token")
    for directory in (out / "ns" / "id" / ".tiled", elsewhere):
        directory.mkdir(parents=True)
        for name in (old, young, foreign):
            (directory / name).write_bytes(b"x")
        os.utime(directory / old, (0, time.time() - 61))
        os.utime(directory / foreign, (0, 0))
    (out / "link").symlink_to(elsewhere)
    assert sweep_temporaries(out) == 1
    assert names(out / "ns") == [f"id/.tiled/{young}", "id/.tiled/token"]
    assert len(names(elsewhere)) == 3
    assert sweep_temporaries(out, now=time.time() + 120) == 1
    assert sweep_temporaries(tmp_path / "none") == 0


def test_subfolders_are_directories_only(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "a").mkdir()
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert subfolders(tmp_path) == ["a", "b"]
    assert subfolders(tmp_path / "none") == []
    with pytest.raises(PublishError, match="Cannot list the directory"):
        subfolders(tmp_path / "file")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "permission was denied"),
        (errno.ENXIO, "no such device or address"),
    ],
)
def test_an_error_says_what_failed_what_stays_and_what_to_do(number: int, words: str) -> None:
    error = explain(OSError(number, "x"), "write", "/out/token", "The old one stays.")
    assert error.message.startswith(f"Cannot write /out/token: {words}")
    assert errno.errorcode[number] in error.message
    assert "The old one stays." in error.message
    assert error.retry is RetryClass.TRANSIENT


def test_names_split_into_their_parts() -> None:
    assert split_relative(".tiled/tokens/https%3A%2F%2Fx/access_token")[2] == "https%3A%2F%2Fx"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", path], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here (that needs root): {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_full_disk_keeps_the_old_file(small_disk: Path) -> None:
    write_file(small_disk, "token", b"old")
    with pytest.raises(PublishError, match=r"the disk is full \(ENOSPC\).*stays.*Free some space"):
        write_file(small_disk, "token", b"x" * 100_000)
    assert (small_disk / "token").read_bytes() == b"old"
    assert names(small_disk) == ["token"]
    write_file(small_disk, "token", b"new")
    assert (small_disk / "token").read_bytes() == b"new"


def test_a_read_only_disk_keeps_the_old_file(small_disk: Path) -> None:
    write_file(small_disk, "token", b"old")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(PublishError, match=r"the file system is read-only \(EROFS\)"):
        write_file(small_disk, "token", b"new")
    assert (small_disk / "token").read_bytes() == b"old"


def test_a_file_size_limit_keeps_the_old_file(tmp_path: Path) -> None:
    write_file(tmp_path, "token", b"old")
    program = (
        "import resource, sys; from pathlib import Path; from keyferry.errors import PublishError;"
        "from keyferry.io.files import write_file\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_file(Path(sys.argv[1]), 'token', b'x' * 5000)\n"
        "except PublishError as error: print(error)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True
    ).stdout
    assert "(EFBIG)" in printed
    assert "stays as it was" in printed
    assert (tmp_path / "token").read_bytes() == b"old"
    assert names(tmp_path) == ["token"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; the read-only disk covers it")
def test_a_forbidden_directory_is_told_of(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PublishError, match=r"permission was denied \(EACCES\)"):
            write_file(tmp_path, "token", b"new")
    finally:
        tmp_path.chmod(0o700)
