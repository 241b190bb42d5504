from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from pando.errors import BaseModelError, FormatVersionError
from pando.files import content_hash
from pando.model import manifest
from pando.model.base import base_files, open_base, pulled_bases
from pando.model.manifest import make_manifest, read_manifest, verify
from pando.model.pull import pull
from tests.model import tiny
from tests.model.test_gguf import write as write_gguf


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.write_base(tmp_path / "my base")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read in full."""
    names: list[str] = []

    def count(content):
        if isinstance(content, Path):
            names.append(content.name)
        return content_hash(content)

    monkeypatch.setattr(manifest, "content_hash", count)
    return names


def test_folder_opens_whole_and_is_not_written_to(folder: Path, home: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]}
    base = open_base(folder)
    assert base.identity.name == "my base" and base.identity.source == str(folder)
    assert base.config == tiny.config()
    assert base.tokenizer.encode("dog") == tiny.tokenizer().encode("dog").ids
    assert base.module().norm.weight.dtype == torch.float32
    assert base.module(dtype=torch.bfloat16).norm.weight.dtype == torch.bfloat16
    assert not any(p.requires_grad for p in base.module().parameters())
    assert {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]} == before


def test_hash_is_over_the_content_alone_and_kept(folder: Path, home: Path, tmp_path: Path, hashed: list[str]) -> None:
    first = open_base(folder).identity.hash
    assert "model.safetensors" in hashed
    hashed.clear()
    assert open_base(folder).identity.hash == first and hashed == []
    copied = shutil.copytree(folder, tmp_path / "elsewhere")
    (copied / "README.md").write_text("not part of the base")
    assert open_base(copied).identity.hash == first
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|im_start|>"}')
    assert open_base(folder).identity.hash != first


def test_pulled_base_is_found_by_name_and_says_where_it_came_from(folder: Path, home: Path, hashed: list[str]) -> None:
    identity = pull(str(folder), name="mine")
    assert pulled_bases() == ["mine"]
    hashed.clear()
    base = open_base("mine")
    assert base.identity == identity and base.folder == home / "bases" / "mine"
    assert hashed == []
    assert identity.source == str(folder)
    assert identity.hash == open_base(folder).identity.hash


def test_touched_file_is_read_once_more_and_remembered(folder: Path, home: Path, hashed: list[str]) -> None:
    pull(str(folder), name="mine")
    os.utime(home / "bases" / "mine" / "config.json", (1, 1))
    hashed.clear()
    open_base("mine")
    assert hashed == ["config.json"]
    hashed.clear()
    open_base("mine")
    assert hashed == []


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda path: path.unlink(), "model.safetensors is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), r"model\.safetensors is broken: \d+ bytes instead of"),
        (lambda path: path.write_bytes(b"\0" * path.stat().st_size), r"model\.safetensors is broken: its content has"),
    ],
)
def test_broken_pulled_file_is_named_and_a_new_pull_mends_it(folder: Path, home: Path, damage, named: str) -> None:
    identity = pull(str(folder), name="mine")
    damage(home / "bases" / "mine" / "model.safetensors")
    with pytest.raises(BaseModelError, match=named):
        open_base("mine")
    assert pull(str(folder), name="mine") == identity
    assert open_base("mine").module()


def test_damage_that_keeps_size_and_time_is_found_by_a_full_look(folder: Path, home: Path) -> None:
    pull(str(folder), name="mine")
    path = home / "bases" / "mine" / "model.safetensors"
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    found = read_manifest(path.parent / manifest.NAME)
    verify(path.parent, found)
    with pytest.raises(BaseModelError, match=r"model\.safetensors is broken"):
        verify(path.parent, found, full=True)


def test_gguf_is_converted_once_into_the_cache(tmp_path: Path, home: Path, hashed: list[str]) -> None:
    path = tmp_path / "my model.gguf"
    write_gguf(path)
    base = open_base(path)
    assert home / "cache" in base.folder.parents
    identity = base.identity
    assert (identity.name, identity.source, identity.licence) == ("my model", str(path), "mit")
    assert identity.revision == content_hash(path)
    hashed.clear()
    assert open_base(str(path)).identity == identity and hashed == []
    (base.folder / "model.safetensors").write_bytes(b"")
    assert open_base(path).module()  # a broken cache is made anew
    moved = path.rename(tmp_path / "moved.gguf")
    assert open_base(moved).identity.hash == identity.hash
    assert len(list((home / "cache" / "gguf").glob("*/pando.json"))) == 1
    assert pull(str(moved), name="mine").hash == identity.hash


@pytest.mark.parametrize(
    ("ref", "said"),
    [
        ("smollm2-135m", "fetch it once with: pando pull smollm2-135m"),
        ("owner/model", "pando pull owner/model"),
        ("nonsense", "no base model 'nonsense'"),
        ("../nowhere", "no base model"),
        ("/no/such/folder", "no base model"),
        ("missing.gguf", r"missing\.gguf: no such file"),
        ("", "no base model ''"),
    ],
)
def test_base_that_is_not_here_says_how_to_get_it(home: Path, ref: str, said: str) -> None:
    with pytest.raises(BaseModelError, match=said):
        open_base(ref)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_incomplete_folder_is_named(folder: Path, home: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BaseModelError, match=f"has no {name}"):
        open_base(folder)
    with pytest.raises(BaseModelError, match=f"has no {name}"):
        pull(str(folder))
    assert pulled_bases() == []


def test_config_of_another_family_names_the_folder(folder: Path, home: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(BaseModelError, match=r"my base: model_type 'mamba' is not supported"):
        open_base(folder)


def test_newer_manifest_is_refused_by_name(folder: Path, home: Path) -> None:
    pull(str(folder), name="mine")
    path = home / "bases" / "mine" / manifest.NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    with pytest.raises(FormatVersionError, match=r"pando\.json has format version 99"):
        open_base("mine")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format_version": 1, "files": 3}', "\x00"])
def test_damaged_manifest_is_named(folder: Path, home: Path, content: str) -> None:
    pull(str(folder), name="mine")
    (home / "bases" / "mine" / manifest.NAME).write_text(content)
    with pytest.raises(BaseModelError, match=r"pando\.json is damaged"):
        open_base("mine")


def test_manifest_goes_out_and_in_unchanged(folder: Path, tmp_path: Path) -> None:
    made = make_manifest(folder, base_files(folder), "a", "somewhere", "r", None)
    made.write(tmp_path / "m.json")
    assert read_manifest(tmp_path / "m.json") == made
    assert read_manifest(tmp_path / "none.json") is None
