"""Skins on disk: what is written is what is read, and what is broken is named."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pando.errors import FormatVersionError, PandoError, SkinError
from pando.skin import Skin, load_skin
from pando.skin.parts import Demonstration
from pando.skin.store import ADAPTER, CARD, ROWS, WEIGHTS
from tests.skin import skins


@pytest.mark.parametrize("place", range(9))
def test_a_saved_skin_is_read_as_it_was(place: int, tmp_path: Path) -> None:
    skin = skins.every(tmp_path)[place]
    saved = skin.save(tmp_path / "skin")
    read = load_skin(tmp_path / "skin")
    assert read.version == skin.version == saved.version
    for name in ("name", "kind", "rung", "method", "prompt", "base", "labels", "demonstrations", "grammar", "abstain"):
        assert getattr(read, name) == getattr(skin, name), name
    for name in ("scoring", "decoding", "reading", "baseline", "constant", "contains_rows"):
        assert getattr(read, name) == getattr(skin, name), name
    assert dict(read.card) == dict(skin.card)
    model = skins.model()
    example = {"subject": "x", "text": "I hate this awful place. It is fine"}
    before, after = ([model.submit(r).result() for r in s.ask(model, example)] for s in (skin, read))
    assert repr(before) == repr(after)
    if skin.kind != "extract":
        assert skin.answer(example, before) == read.answer(example, after)


def test_an_adapter_travels_with_the_skin(tmp_path: Path) -> None:
    saved = skins.lora(tmp_path / "made").save(tmp_path / "skin")
    assert saved.adapter == tmp_path / "skin" == load_skin(tmp_path / "skin").adapter
    assert {path.name for path in (tmp_path / "skin").iterdir()} == {CARD, *ADAPTER}


def test_nothing_on_disk_is_a_pickle(tmp_path: Path) -> None:
    for n, skin in enumerate(skins.every(tmp_path)):
        skin.save(tmp_path / str(n))
        names = {path.name for path in (tmp_path / str(n)).iterdir()}
        assert names <= {CARD, WEIGHTS, ROWS, "vocabulary.json", *ADAPTER}


def test_version_is_of_what_bears_on_answers() -> None:
    skin = skins.few()
    assert replace(skin, name="other", card={"quality": 1.0}).version == skin.version
    shown = (*skin.demonstrations[:1], Demonstration({"text": "so awful"}, "bad"))
    changed = [
        replace(skin, demonstrations=shown),
        replace(skin, abstain=0.5),
        replace(skin, scoring=replace(skin.scoring, scale=2.0)),
        replace(skin, labels=("bad", "fine")),
        replace(skin, base=replace(skins.base(), hash="sha256:0")),
    ]
    assert len({skin.version, *(s.version for s in changed)}) == 6
    probe = skins.probe()
    assert probe.linear
    moved = replace(probe, linear=replace(probe.linear, bias=np.ones(2, dtype=np.float32)))
    assert moved.version != probe.version


text = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30)


@settings(max_examples=50)
@given(text, text, st.floats(allow_nan=False, allow_infinity=False), text)
def test_any_text_and_number_survives(instruction: str, shown: str, number: float, label: str) -> None:
    import tempfile

    skin = skins.few()
    skin = replace(
        skin,
        prompt=replace(skin.prompt, instruction=instruction),
        demonstrations=(Demonstration({"text": shown}, label),),
        scoring=replace(skin.scoring, prior={label: number}),
    )
    with tempfile.TemporaryDirectory() as folder:
        skin.save(Path(folder) / "skin")
        read = load_skin(Path(folder) / "skin")
    assert (read.prompt, read.demonstrations, read.scoring) == (skin.prompt, skin.demonstrations, skin.scoring)
    assert read.version == skin.version


def test_the_chosen_skin_of_a_ladder_is_found(tmp_path: Path) -> None:
    skins.score().save(tmp_path / "skin")
    assert load_skin(tmp_path).version == skins.score().version


def broken(tmp_path: Path, skin: Skin | None = None) -> Path:
    (skin or skins.knn()).save(tmp_path / "skin")
    return tmp_path / "skin"


def edit(folder: Path, **changes: object) -> None:
    record = yaml.safe_load((folder / CARD).read_text())
    (folder / CARD).write_text(yaml.safe_dump(record | changes))


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(SkinError, match="there is no skin folder"):
        load_skin(tmp_path / "nowhere")
    with pytest.raises(SkinError, match=r"has no skin\.yaml"):
        load_skin(tmp_path)
    folder = broken(tmp_path)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1] + b"x")
    with pytest.raises(SkinError, match=r"weights\.safetensors is damaged"):
        load_skin(folder)
    (folder / ROWS).unlink()
    with pytest.raises(SkinError, match=r"rows\.jsonl cannot be read|weights\.safetensors is damaged"):
        load_skin(folder)


@pytest.mark.parametrize(
    "content", ["", "- 1", "a: [", "\x00", "format_version: x", "format_version: 1", "format_version: 1\nname: {}"]
)
def test_a_damaged_card_is_named(content: str, tmp_path: Path) -> None:
    folder = broken(tmp_path)
    (folder / CARD).write_text(content)
    with pytest.raises(PandoError, match=r"skin\.yaml"):
        load_skin(folder)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    folder = broken(tmp_path)
    edit(folder, format_version=2)
    with pytest.raises(FormatVersionError, match="format version 2"):
        load_skin(folder)


def test_an_unknown_section_key_is_damage(tmp_path: Path) -> None:
    folder = broken(tmp_path)
    edit(folder, prompt={"instruction": "x", "inputs": ["text"], "hypnosis": 1})
    with pytest.raises(SkinError, match="hypnosis"):
        load_skin(folder)


def test_files_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    folder = broken(tmp_path)
    edit(folder, files={"../secret": "sha256:0"})
    with pytest.raises(SkinError, match="damaged"):
        load_skin(folder)


def test_a_pickle_is_not_a_weights_file(tmp_path: Path) -> None:
    from pando.files import content_hash

    folder = broken(tmp_path, skins.floor())
    (folder / WEIGHTS).write_bytes(b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00.")
    record = yaml.safe_load((folder / CARD).read_text())
    edit(folder, files=record["files"] | {WEIGHTS: content_hash(folder / WEIGHTS)})
    with pytest.raises(SkinError, match="damaged"):
        load_skin(folder)


def test_a_peft_folder_is_told_from_a_skin(tmp_path: Path) -> None:
    (tmp_path / ADAPTER[0]).write_text("{}")
    with pytest.raises(SkinError, match=r"PEFT adapter.*GenerateRequest\(skin="):
        load_skin(tmp_path)


def test_a_ladder_without_a_choice_points_to_its_rungs(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps({}))
    with pytest.raises(SkinError, match="chose no skin"):
        load_skin(tmp_path)


def test_an_adapter_that_is_gone_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    skin = skins.lora(tmp_path / "made")
    os.unlink(tmp_path / "made" / ADAPTER[1])
    with pytest.raises(SkinError, match="is gone"):
        skin.save(tmp_path / "skin")
    assert not (tmp_path / "skin").exists()
