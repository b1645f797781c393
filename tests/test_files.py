"""Whole or not at all: what others see while a file or folder is written, and what is left when that fails."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from labsupport.files import replacing, replacing_folder, write_atomically


@pytest.fixture
def umask() -> Iterator[int]:
    """A mask that takes everything from the group and from others but reading."""
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_and_its_folders_are_made(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b" / "text", "größer\r\n")
    write_atomically(str(tmp_path / "a" / "b" / "bytes"), b"\xff\0")
    assert (tmp_path / "a" / "b" / "text").read_bytes() == "größer\r\n".encode()
    assert (tmp_path / "a" / "b" / "bytes").read_bytes() == b"\xff\0"
    assert names(tmp_path / "a" / "b") == ["bytes", "text"]


def test_the_old_file_is_there_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("half of the new")
        assert path.read_text() == "old"
        assert temporary.parent == tmp_path and temporary.name.startswith(".") and temporary.suffix == ".tmp"
        temporary.write_text("new")
    assert path.read_text() == "new" and names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("old", ["old", None])
def test_a_block_that_raises_changes_nothing(tmp_path: Path, error: type[BaseException], old: str | None) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_text(old)
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text("half of the new")
        raise error
    assert names(tmp_path) == (["file"] if old is not None else [])
    assert old is None or path.read_text() == old


def test_a_rename_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*paths: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    with pytest.raises(OSError, match="disk full"), replacing_folder(tmp_path / "folder"):
        pass
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


KILLED = """
import os, signal, sys
from pathlib import Path
from labsupport.files import replacing, replacing_folder
path = Path(sys.argv[2])
with (replacing if sys.argv[1] == "file" else replacing_folder)(path) as temporary:
    (temporary if sys.argv[1] == "file" else temporary / "part").write_text("half of the new")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_process_killed_in_the_middle_leaves_the_target_as_it_was(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("old")
    outcome = subprocess.run([sys.executable, "-c", KILLED, kind, str(tmp_path / kind)], timeout=120)
    assert outcome.returncode == -signal.SIGKILL
    assert (tmp_path / "file").read_text() == "old" and not (tmp_path / "folder").exists()
    (left,) = set(names(tmp_path)) - {"file"}
    assert left.startswith(f".{kind}.") and left.endswith(".tmp")
    write_atomically(tmp_path / "file", "new")  # what was left is in nobody's way
    with replacing_folder(tmp_path / "folder") as temporary:
        (temporary / "part").write_text("whole")
    assert (tmp_path / "file").read_text() == "new" and (tmp_path / "folder" / "part").read_text() == "whole"


def test_readers_see_the_old_or_the_new_and_never_a_part(tmp_path: Path) -> None:
    path, size = tmp_path / "file", 1 << 16
    write_atomically(path, bytes(size))
    finished = threading.Event()

    def write() -> None:
        for number in range(200):
            write_atomically(path, bytes([number]) * size)
        finished.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not finished.is_set():
        content = path.read_bytes()
        assert len(content) == size and content == content[:1] * size
        seen.add(content[0])
    writer.join()
    assert len(seen) > 1  # the file did change under the reader's eyes


def test_many_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    threads = [threading.Thread(target=write_atomically, args=(tmp_path / "file", str(n) * 100_000)) for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = (tmp_path / "file").read_text()
    assert content == content[0] * 100_000 and names(tmp_path) == ["file"]


# Modes ----------------------------------------------------------------------------------------------------------------


def test_a_new_file_and_a_new_folder_follow_the_umask(tmp_path: Path, umask: int) -> None:
    write_atomically(tmp_path / "file", "x")
    with replacing_folder(tmp_path / "folder") as temporary:
        (temporary / "part").write_text("x")
    assert mode(tmp_path / "file") == mode(tmp_path / "folder" / "part") == 0o666 & ~umask
    assert mode(tmp_path / "folder") == 0o777 & ~umask


@pytest.mark.parametrize("kept", [0o600, 0o644, 0o755, 0o664, 0o444])
def test_a_file_that_is_replaced_keeps_its_mode(tmp_path: Path, umask: int, kept: int) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(kept)
    with replacing(path) as temporary:
        assert mode(temporary) & ~kept & ~0o600 == 0  # not even the unfinished file is more open than the old one
        temporary.write_text("new")
    assert mode(path) == kept and path.read_text() == "new"


@pytest.mark.parametrize("old", [None, 0o644, 0o666])
def test_a_private_file_is_private_from_the_first_moment(tmp_path: Path, old: int | None) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_text("old")
        path.chmod(old)
    with replacing(path, private=True) as temporary:
        assert mode(temporary) == 0o600
        temporary.write_text("secret")
    assert mode(path) == 0o600
    write_atomically(path, "secret too", private=True)
    assert mode(path) == 0o600


def test_a_file_put_in_place_of_the_temporary_one_gets_the_mode_too(tmp_path: Path) -> None:
    """Some libraries write a file of their own and rename it."""
    with replacing(tmp_path / "file", private=True) as temporary:
        (tmp_path / "other").write_text("by a library")
        (tmp_path / "other").chmod(0o666)
        (tmp_path / "other").rename(temporary)
    assert mode(tmp_path / "file") == 0o600 and (tmp_path / "file").read_text() == "by a library"


def test_the_umask_is_never_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It belongs to the whole process: a thread that makes a file meanwhile would get the wrong mode."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was changed"))
    write_atomically(tmp_path / "file", "x")
    write_atomically(tmp_path / "file", "x", private=True)
    with replacing_folder(tmp_path / "folder"):
        pass


# Targets --------------------------------------------------------------------------------------------------------------


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("someone else's")
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("link", "dangling"):
        write_atomically(tmp_path / name, "new")
        assert not (tmp_path / name).is_symlink() and (tmp_path / name).read_text() == "new"
    assert (tmp_path / "target").read_text() == "someone else's" and not (tmp_path / "nowhere").exists()


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        write_atomically(tmp_path / "folder", "x")
    assert names(tmp_path) == ["folder"] and (tmp_path / "folder").is_dir()


@pytest.mark.parametrize("name", ["x" * 255, "李" * 85, "é" * 127], ids=["ascii", "three bytes each", "two bytes each"])
def test_names_as_long_as_the_file_system_allows(tmp_path: Path, name: str) -> None:
    write_atomically(tmp_path / name, "x")
    assert names(tmp_path) == [name]
    (tmp_path / name).unlink()
    with replacing_folder(tmp_path / name):
        pass
    assert names(tmp_path) == [name]


def test_a_folder_appears_with_all_that_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with replacing_folder("deep/folder") as temporary:
        (temporary / "a").write_text("1")
        assert not Path("deep/folder").exists()
        (temporary / "inner").mkdir()
    assert names(tmp_path / "deep" / "folder") == ["a", "inner"] and names(tmp_path / "deep") == ["folder"]


def test_an_empty_folder_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with replacing_folder(tmp_path / "folder") as temporary:
        (temporary / "a").write_text("1")
    assert names(tmp_path / "folder") == ["a"]


@pytest.mark.parametrize("kind", ["full folder", "file", "link to a folder", "dangling link"])
def test_a_folder_replaces_nothing_that_someone_may_want(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "folder"
    (tmp_path / "empty").mkdir()
    if kind == "full folder":
        folder.mkdir()
        (folder / "thesis").write_text("important")
    elif kind == "file":
        folder.write_text("important")
    else:
        folder.symlink_to("empty" if kind == "link to a folder" else "nowhere")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match="exists and is not an empty folder"), replacing_folder(folder):
        pytest.fail("the work was done for nothing")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_was_filled_meanwhile_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with pytest.raises(OSError), replacing_folder(folder) as temporary:
        (temporary / "a").write_text("new")
        folder.mkdir()
        (folder / "a").write_text("someone else's")
    assert names(tmp_path) == ["folder"] and (folder / "a").read_text() == "someone else's"


def test_a_folder_whose_block_raises_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), replacing_folder(tmp_path / "folder") as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "a").write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == []
