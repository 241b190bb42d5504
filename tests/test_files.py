from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pando import files
from pando.errors import FormatVersionError, PandoError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_atomic_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a b.json"
    files.atomic_write(path, "één")
    files.atomic_write(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == ["a b.json"]


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_keeps_the_old_file_and_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    files.atomic_write(path, "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PandoError, match=r"report\.json: the disk is full"):
        files.atomic_write(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["report.json"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PandoError, match="missing"):
        files.atomic_write(tmp_path / "missing" / "x", "x")


def test_atomic_dir_replaces_a_folder_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "skin"
    for round_ in ("one", "two"):
        with files.atomic_dir(path) as temporary:
            (temporary / "sub").mkdir()
            (temporary / "sub" / round_).write_text(round_)
            assert not (path / "sub" / round_).exists()
    assert names(path / "sub") == ["two"]
    assert names(path.parent) == ["skin"]


def test_a_folder_gives_way_only_to_its_like(tmp_path: Path) -> None:
    folder = tmp_path / "real"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    assert files.replaceable(tmp_path / "link", "mark", "a*") == folder  # what a link names is replaced, not the link
    for name in ("mark", "a1"):
        (folder / name).touch()
    assert files.replaceable(folder, "mark", "a*") == folder
    (folder / "precious").touch()
    with pytest.raises(PandoError, match=r"holds something else \(precious\)"):
        files.replaceable(folder, "mark", "a*")
    with pytest.raises(PandoError, match="holds something else"):
        files.replaceable(folder / "mark", "mark")


def test_a_path_is_no_pattern_where_it_is_there(tmp_path: Path) -> None:
    for name in ("b [1].txt", "a.txt"):
        (tmp_path / name).touch()
    assert files.matching(tmp_path, "b [1].txt") == [tmp_path / "b [1].txt"]
    assert files.matching(tmp_path, "*.txt") == [tmp_path / "a.txt", tmp_path / "b [1].txt"]
    assert files.matching(tmp_path, "none") == []


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_atomic_dir_keeps_the_old_folder_when_filling_fails(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "skin"
    with files.atomic_dir(path) as temporary:
        (temporary / "old").touch()
    with pytest.raises(type(error)), files.atomic_dir(path) as temporary:
        (temporary / "new").touch()
        raise error
    assert names(path) == ["old"]
    assert names(tmp_path) == ["skin"]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("I/O error: No space left (os error 28)")],
)
def test_atomic_dir_names_the_folder_on_a_full_disk(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(PandoError, match="skin: the disk is full"), files.atomic_dir(tmp_path / "skin"):
        raise error
    assert names(tmp_path) == []


def test_what_a_killed_process_left_is_swept_away(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pando import files\nwith files.atomic_dir(sys.argv[1]) as folder: os.kill(os.getpid(), 9)"
    )
    path = tmp_path / "skin"
    subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert len(names(tmp_path)) == 1 and not path.exists()
    with files.atomic_dir(path):
        pass
    assert names(tmp_path) == ["skin"]


@given(st.lists(st.text(st.characters(exclude_characters="\n", codec="utf-8"))), st.binary(max_size=200_000))
def test_lines_survive_a_torn_tail(tmp_path_factory: pytest.TempPathFactory, lines: list[str], tail: bytes) -> None:
    path = tmp_path_factory.mktemp("lines") / "store.jsonl"
    assert files.read_lines(path) == []
    for line in lines:
        files.append_line(path, line)
    with path.open("ab") as file:
        file.write(tail.replace(b"\n", b""))
    assert files.read_lines(path) == lines
    files.append_line(path, "after")
    assert files.read_lines(path) == [*lines, "after"]


def test_a_line_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line break"):
        files.append_line(tmp_path / "x", "a\nb")


def test_hashes_agree_and_objects_are_canonical(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes("é".encode())
    expected = "sha256:" + hashlib.sha256("é".encode()).hexdigest()
    assert files.content_hash("é") == files.content_hash("é".encode()) == files.content_hash(tmp_path / "f") == expected
    assert files.content_hash({"a": 1, "b": [None]}) == files.content_hash({"b": [None], "a": 1})
    assert files.content_hash({"a": 1}) != files.content_hash({"a": "1"})
    with pytest.raises(ValueError, match="JSON"):
        files.content_hash(float("nan"))


def test_newer_formats_are_refused_by_name() -> None:
    files.check_format("skin x", 1, 2)
    files.check_format("skin x", 2, 2)
    with pytest.raises(FormatVersionError, match="skin x has format version 3"):
        files.check_format("skin x", 3, 2)


@pytest.mark.parametrize("found", [None, "1", 0, True, 1.0])
def test_what_is_no_version_is_refused(found: object) -> None:
    with pytest.raises(PandoError, match="skin x has no format version"):
        files.check_format("skin x", found, 2)


def test_progress_says_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(files.time, "monotonic", lambda: now)
    with files.progress(100, "scoring") as advance:
        advance()
        now = 11.0
        advance(39)
        advance()
    assert capsys.readouterr().err == "scoring: 40 of 100\n"
