"""A file of any size through a skin; killed anywhere, the same again gives every row once."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pando.errors import PandoError
from pando.files import append_lines
from pando.skin import bulk
from pando.skin.bulk import Tally, predict_file
from tests.fakes import FakeModel
from tests.skin import skins

WORDS = ["I love it", "I hate it", "", "poison", "fine"]


def write(path: Path, n: int) -> Path:
    lines = []
    for i in range(n):
        text = WORDS[i % 5]
        lines.append("not json" if i % 17 == 16 else json.dumps({"text": f"{text} {i}" if text else "", "i": i}))
    path.write_text("\n".join(lines) + "\n")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(folder: Path, model: FakeModel | None = None, **keys: Any) -> Tally:
    model = model or FakeModel(skins.HINTS, fail="poison")
    return predict_file(skins.score(), model, folder / "rows.jsonl", folder / "preds.jsonl", **keys)


def check(folder: Path, n: int) -> None:
    good, bad = read(folder / "preds.jsonl"), read(folder / "preds.jsonl.bad.jsonl")
    for found in (good, bad):
        lines = [record["line"] for record in found]
        assert lines == sorted(set(lines))
    assert sorted(r["line"] for r in good + bad) == list(range(1, n + 1))
    for record in good:
        assert record["value"] == ("bad" if "hate" in record["input"]["text"] else "good")
        assert 0.5 < record["confidence"] <= 1
    assert {r["why"].split()[0] for r in bad} >= {"no", "the"}


def test_every_row_is_answered_or_listed_as_bad(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", 300)
    seen = []
    tally = run(tmp_path, done=lambda predictions, count, seconds: seen.append(count))
    check(tmp_path, 300)
    assert tally.rows == 300 == sum(seen)
    assert tally.bad == len(read(tmp_path / "preds.jsonl.bad.jsonl")) > 100
    assert (tally.withheld, tally.before) == (0, 0)


@pytest.mark.parametrize("seed", range(12))
def test_killed_at_any_byte_it_goes_on(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed process leaves: whole appends up to one, of which any number of bytes."""
    monkeypatch.setattr(bulk, "BATCH", 32)
    write(tmp_path / "rows.jsonl", 200)
    draw = random.Random(seed)

    class Killed(BaseException):
        pass

    left = draw.randrange(10)

    def torn(path: Path, lines: list[str]) -> None:
        nonlocal left
        left -= bool(lines)
        if left < 0:
            data = "".join(f"{line}\n" for line in lines).encode()
            with Path(path).open("ab") as file:
                file.write(data[: draw.randrange(len(data) + 1)])
            raise Killed
        append_lines(path, lines)

    monkeypatch.setattr(bulk, "append_lines", torn)
    with pytest.raises(Killed):
        run(tmp_path)
    left = draw.randrange(4)
    with pytest.raises(Killed):
        run(tmp_path)
    monkeypatch.setattr(bulk, "append_lines", append_lines)
    model = FakeModel(skins.HINTS, fail="poison")
    before = len(read_whole(tmp_path / "preds.jsonl"))
    run(tmp_path, model)
    check(tmp_path, 200)
    answered = [r for r in model.asked if "poison" not in str(r)]
    assert len(answered) == len(read(tmp_path / "preds.jsonl")) - before


def read_whole(path: Path) -> list[str]:
    return path.read_text().split("\n")[:-1] if path.exists() else []


def test_again_there_is_nothing_to_do_and_new_rows_are_added(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", 4000)
    run(tmp_path)
    model = FakeModel(skins.HINTS, fail="poison")
    assert run(tmp_path, model) == Tally(before=4000)
    assert model.asked == []
    with rows.open("a") as file:
        file.write('{"text": "I love it"}\n')
    assert run(tmp_path, model) == Tally(answered=1, before=4000)
    assert run(tmp_path, model) == Tally(before=4001)
    data = bytearray(rows.read_bytes())
    data[-100] ^= 1  # far behind the first rows
    rows.write_bytes(data)
    with pytest.raises(PandoError, match="other rows"):
        run(tmp_path, model)


def test_other_skin_other_rows_or_a_stranger_is_not_touched(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", 20)
    out = tmp_path / "preds.jsonl"
    out.write_text("mine\n")
    with pytest.raises(PandoError, match="no unfinished prediction"):
        run(tmp_path)
    out.unlink()
    run(tmp_path)
    with pytest.raises(PandoError, match="another skin"):
        predict_file(skins.floor(), None, tmp_path / "rows.jsonl", out)
    other = FakeModel(skins.HINTS, fail="poison")
    other.identity = replace(other.identity, hash="sha256:other")
    with pytest.raises(PandoError, match="another base"):
        run(tmp_path, other)
    with pytest.raises(PandoError, match="would take the place of the rows"):
        predict_file(skins.score(), other, out, out, fresh=True)
    assert read(out)
    (tmp_path / "rows.jsonl").write_text('{"text": "new"}\n')
    with pytest.raises(PandoError, match="other rows"):
        run(tmp_path)
    assert run(tmp_path, fresh=True) == Tally(answered=1)
    assert len(read(out)) == 1


def test_withheld_answers_are_counted_and_marked(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "I love it, fine"}\n{"text": "hm"}\n')
    skin = replace(skins.score(), abstain=0.7)
    out = tmp_path / "preds.jsonl"
    assert predict_file(skin, skins.model(), tmp_path / "rows.jsonl", out) == Tally(answered=1, withheld=1)
    first, second = read(out)
    assert first["value"] == "good" and "abstained" not in first
    assert second["value"] is None and second["abstained"] is True


def test_what_is_not_a_rows_fault_stops_the_run(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", 5)

    class Gone(FakeModel):
        def submit(self, request: Any) -> Any:
            raise PandoError("the model was closed")

    with pytest.raises(PandoError, match="closed"):
        run(tmp_path, Gone())
    assert read(tmp_path / "preds.jsonl") == []


def test_tables_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('text,n\n"I love\nit",1\nawful,2\n')
    out = tmp_path / "preds.jsonl"
    predict_file(skins.score(), skins.model(), tmp_path / "rows.csv", out)
    assert [(r["line"], r["value"]) for r in read(out)] == [(2, "good"), (4, "bad")]
