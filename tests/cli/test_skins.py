"""`pando skins`, `pando predict` and `pando chat`, in this process with a model without weights."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pando import cli
from pando.ledger import open_ledger
from tests.fakes import FakeModel
from tests.skin import skins

CARD = {
    "metric": "accuracy",
    "quality": 0.875,
    "low": 0.8,
    "high": 0.93,
    "n": 100,
    "split": "test",
    "dtype": "float32",
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pando.engine.load", lambda *_, **__: FakeModel(skins.HINTS, fail="poison"))


def pando(*arguments: str, say: str = "", capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pando", *arguments])
        patch.setattr(sys, "stdin", io.StringIO(say))
        with pytest.raises(SystemExit) as ended:
            cli.main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


class TestSkins:
    def test_list(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        replace(skins.few(), card=CARD).save(tmp_path / "a" / "skin")
        skins.floor().save(tmp_path / "b" / "skins" / "floor")
        code, out, _ = pando("skins", "list", capsys=capsys)
        assert code == 0
        few, floor = out.splitlines()[1:]
        assert {"mood", "few", "fake", "0.875", "[0.80,", "contained", "a/skin"} <= set(few.split())
        assert {"floor", "not", "measured", "b/skins/floor"} <= set(floor.split())
        found = json.loads(pando("skins", "list", "b", "--json", capsys=capsys)[1])
        assert [(s["rung"], s["contains_rows"], s["base"]) for s in found] == [("floor", False, None)]

    def test_a_broken_skin_is_told_of_and_the_others_are_listed(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        unbounded = {**CARD, "quality": -3.0, "low": None, "high": None}
        replace(skins.few(), card=unbounded).save(tmp_path / "a")
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "skin.yaml").write_text("format_version: 99")
        code, out, err = pando("skins", "list", capsys=capsys)
        assert code == 2 and "-3.000 [?, ?] accuracy" in out
        assert len(err.splitlines()) == 1 and "99" in err
        assert "-3.000 [?, ?] accuracy" in pando("skins", "show", "a", capsys=capsys)[1]

    def test_show_says_whether_rows_travel_with_it(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        said = {}
        for skin in [*skins.every(tmp_path), replace(skins.knn(), card=CARD)]:
            skin.save(tmp_path / "skin")
            code, out, _ = pando("skins", "show", "skin", capsys=capsys)
            assert code == 0
            said[skin.rung] = out
            shown = json.loads(pando("skins", "show", "skin", "--json", capsys=capsys)[1])
            assert shown["version"] == skin.version and shown["contains_rows"] == skin.contains_rows
        assert "2 are in its prompt: whoever gets this skin gets them" in said["few"]
        assert "3 are kept in it to pick demonstrations from: whoever" in said["knn"]
        assert "0.875 [0.80, 0.93] accuracy (n 100, split test, dtype float32)" in said["knn"]
        assert "none can be read from it" in said["probe"]
        assert "layer 4, 1, last token of its prompt" in said["probe"]
        assert "with a LoRA adapter" in said["lora"]

    def test_nothing_there(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "make one with pando adapt" in pando("skins", "list", capsys=capsys)[1]
        assert pando("skins", "list", "nowhere", capsys=capsys)[0] == 2
        code, _, err = pando("skins", "show", "nowhere", capsys=capsys)
        assert (code, err) == (2, "pando: there is no skin folder nowhere\n")


class TestPredict:
    def test_a_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        skins.score().save(tmp_path / "skin")
        Path("rows.jsonl").write_text('{"text": "I love it"}\n{"text": "poison"}\n{"text": "awful"}\n')
        code, out, err = pando("predict", "skin", "rows.jsonl", "--out", "p.jsonl", capsys=capsys)
        assert (code, out) == (0, "")
        assert err.endswith("3 rows, 2 answered, 1 bad (see p.jsonl.bad.jsonl): p.jsonl\n")
        answers = [json.loads(line) for line in Path("p.jsonl").read_text().splitlines()]
        assert [(a["line"], a["value"]) for a in answers] == [(1, "good"), (3, "bad")]
        with open_ledger() as ledger:
            (line,) = ledger.lines()
        assert line["skin"] == "mood" and line["prompt_tokens"] > 0 and line["usd"] > 0
        err = pando("predict", "skin", "rows.jsonl", "--out", "p.jsonl", capsys=capsys)[2]
        assert "3 rows, 0 answered, 3 done before" in err

    def test_a_floor_loads_no_model(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("pando.engine.load", None)
        skins.floor().save(tmp_path / "skin")
        Path("rows.csv").write_text("text\nhate\n")
        assert pando("predict", "skin", "rows.csv", capsys=capsys)[0] == 0
        assert json.loads(Path("preds.jsonl").read_text())["line"] == 2

    @pytest.mark.parametrize(
        ("arguments", "why"),
        [
            (["nowhere", "rows.jsonl"], "there is no skin folder nowhere"),
            (["skin", "absent.jsonl"], "absent.jsonl cannot be read"),
            (["skin", "rows.txt"], "rows are read from .jsonl"),
            (["skin", "rows.jsonl", "--out", "missing/p.jsonl"], "cannot write"),
        ],
    )
    def test_mistakes_are_one_line(
        self, arguments: list[str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        skins.score().save(tmp_path / "skin")
        for name in ("rows.jsonl", "rows.txt"):
            Path(name).write_text('{"text": "x"}\n')
        code, out, err = pando("predict", *arguments, capsys=capsys)
        assert code == 2 and out == ""
        assert why in err and err.count("\n") == 1

    def test_another_base_is_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        other = replace(skins.base(), hash="sha256:other", name="other")
        replace(skins.score(), base=other).save(tmp_path / "skin")
        Path("rows.jsonl").write_text('{"text": "x"}\n')
        code, _, err = pando("predict", "skin", "rows.jsonl", capsys=capsys)
        assert code == 2 and "was made on other" in err
        assert pando("predict", "skin", "rows.jsonl", "--force", capsys=capsys)[0] == 0


class TestChat:
    def test_a_base(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        model = FakeModel(write=lambda text: f"you said {text}")
        monkeypatch.setattr("pando.engine.load", lambda *_, **__: model)
        code, out, err = pando("chat", "--system", "Be brief.", say="hello\n\nagain\n/reset\nanew\n", capsys=capsys)
        assert code == 0
        assert out.split("\n") == ["you said hello ", "you said again ", "you said anew ", ""]
        turns = [[m["content"] for m in r.messages] for r in model.asked]  # type: ignore[union-attr]
        assert turns[1] == ["Be brief.", "hello", "you said hello ", "again"]
        assert turns[2] == ["Be brief.", "anew"]
        assert "Ctrl-C stops an answer" in err

    def test_a_full_context_forgets_and_goes_on(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        model = FakeModel(write=lambda text: "well " * 10, context_length=60)
        monkeypatch.setattr("pando.engine.load", lambda *_, **__: model)
        code, out, err = pando("chat", say="one\ntwo\nthree\nfour\nfour\nfive\n", capsys=capsys)
        assert code == 0
        assert "is forgotten, say it again" in err
        assert out.count("well") >= 40

    def test_a_skin(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        skins.score().save(tmp_path / "skin")
        code, out, err = pando("chat", "skin", say="I love it\npoison\nawful\n", capsys=capsys)
        assert code == 0
        assert [line.split()[0] for line in out.splitlines()] == ["good", "bad"]
        assert "told to fail" in err

    def test_a_skin_of_two_fields_that_writes(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        replace(skins.extract(), abstain=None).save(tmp_path / "skin")
        code, out, _ = pando("chat", "skin", say="trip\nto Rome, I love it\n/exit\nmore\n", capsys=capsys)
        assert (code, json.loads(out)) == (0, {"city": "good"})
