from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keyferry.errors import PublishError
from keyferry.io.files import TEMPORARY_PREFIX, Folder
from keyferry.io.leftovers import sweep_temporaries
from keyferry.io.new_folder import new_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[Folder]:
    with Folder.open(tmp_path / "out") as opened:
        yield opened


def names(folder: Folder) -> list[str]:
    return [path.name for path in folder.path.iterdir()]


def fill(parent: Folder, *files: str) -> None:
    with new_folder(parent, "bot") as folder:
        for name in files:
            folder.create(name, b"abc")


def test_it_is_not_there_before_it_is_whole(parent: Folder) -> None:
    with new_folder(parent, "bot") as folder:
        folder.create("token", b"abc")
        folder.create("below/token", b"def")
        assert parent.status("bot") is None
    assert (parent.path / "bot" / "token").read_bytes() == b"abc"
    assert (parent.path / "bot" / "below" / "token").read_bytes() == b"def"
    assert (parent.path / "bot").stat().st_mode & 0o777 == 0o700
    assert (parent.path / "bot" / "token").stat().st_mode & 0o777 == 0o600
    assert names(parent) == ["bot"]


def test_an_error_leaves_nothing_behind(parent: Folder) -> None:
    with pytest.raises(PublishError):
        fill(parent, "below/token", "../token")
    assert names(parent) == []


@pytest.mark.parametrize("taken", ["full", "file", "link"])
def test_what_is_there_stays(parent: Folder, taken: str) -> None:
    place = parent.path / "bot"
    if taken == "full":
        place.mkdir()
        (place / "theirs").write_text("theirs")
    elif taken == "file":
        place.write_text("theirs")
    else:
        place.symlink_to(parent.path)
    with pytest.raises(FileExistsError):
        fill(parent, "token")
    assert names(parent) == ["bot"]
    assert place.is_symlink() or (place if taken == "file" else place / "theirs").read_text() == "theirs"


def test_an_error_names_the_place_that_people_know(parent: Folder) -> None:
    with pytest.raises(PublishError) as caught:
        fill(parent, "token", "token")
    assert str(parent.path / "bot" / "token") in caught.value.message
    assert TEMPORARY_PREFIX not in caught.value.message


def test_what_a_killed_process_left_is_swept(parent: Folder) -> None:
    left = parent.path / f"{TEMPORARY_PREFIX}1"
    (left / "below").mkdir(parents=True)
    (left / "below" / "token").write_text("secret")
    (parent.path / "bot").mkdir()
    assert sweep_temporaries(parent.path) == 0, "its writer may be at work"
    assert sweep_temporaries(parent.path, older_than=-60) == 1
    assert names(parent) == ["bot"]
