from __future__ import annotations

import json

import pytest

from pando.adapt.folder import Folder
from pando.errors import FormatVersionError, PandoError


def test_a_folder_goes_on_where_it_was(tmp_path):
    first = Folder(tmp_path / "out")
    first.claim(task="t", mode="climb")
    first.beat()
    first.keep("zero", {"seconds": 2.5})
    first.close()
    again = Folder(tmp_path / "out")
    again.claim(task="t", mode="climb", base="b")
    assert again.id == first.id
    assert again.seconds > 0
    assert again.state("zero") == {"format_version": 1, "seconds": 2.5}
    assert again.state("few") == {}


@pytest.mark.parametrize(("name", "value"), [("mode", "sweep"), ("task", "x" * 64)])
def test_another_purpose_is_refused_by_name(tmp_path, name, value):
    first = Folder(tmp_path)
    first.claim(task="t", mode="climb")
    first.beat()
    first.close()
    again = Folder(tmp_path)
    with pytest.raises(PandoError, match=f"another {name}.*--fresh"):
        again.claim(**{name: value})
    again.close()
    Folder(tmp_path, fresh=True).claim(**{name: value})


def test_fresh_removes_what_is_ours_only(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    first = Folder(tmp_path)
    first.claim(task="t")
    first.beat()
    first.keep("zero", {"seconds": 1.0})
    first.close()
    fresh = Folder(tmp_path, fresh=True)
    assert fresh.id != first.id
    assert fresh.state("zero") == {}
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_what_no_ladder_wrote_is_left_alone(tmp_path):
    (tmp_path / "skins").mkdir()
    for fresh in (False, True):
        with pytest.raises(PandoError, match="holds skins, which no ladder wrote: use another --out"):
            Folder(tmp_path, fresh=fresh)
    assert (tmp_path / "skins").is_dir()


def test_a_purpose_counts_from_the_first_beat(tmp_path):
    first = Folder(tmp_path)
    first.claim(task="t")  # and then the base is not there
    first.close()
    Folder(tmp_path).claim(task="mended")


def test_two_at_once_are_refused(tmp_path):
    first = Folder(tmp_path)
    with pytest.raises(PandoError, match="another `pando adapt` works in"):
        Folder(tmp_path)
    first.close()
    Folder(tmp_path).close()


def test_damaged_and_newer_files_are_named(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(PandoError, match=r"run\.json is damaged"):
        Folder(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"format_version": 7}))
    with pytest.raises(FormatVersionError):
        Folder(tmp_path)


def test_seconds_add_up_over_runs(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"format_version": 1, "id": "i", "seconds": 100.0}))
    folder = Folder(tmp_path)
    assert folder.seconds > 100
    folder.beat()
    assert json.loads((tmp_path / "run.json").read_text())["seconds"] > 100


def test_a_place_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PandoError, match="cannot make the folder"):
        Folder(tmp_path / "file" / "out")
