"""Whatever a user can get wrong: the command says one line and exits with 2, and leaves nothing behind.

One row of the table is one mistake: the files that are there, the arguments, and a pattern that the line matches.
A folder of its own is the working directory; `task.yaml` and `rows.jsonl` are there and sound unless the row says
otherwise.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

TASK = """\
name: mood
kind: classify
instruction: Is it good or bad?
data: rows.jsonl
fields: {input: text, output: label}
"""
ROWS = [{"text": f"text number {i} of {i * i}", "label": "good" if i % 2 else "bad"} for i in range(40)]
TWO_FILES = TASK.replace("data: rows.jsonl", "data: {train: rows.jsonl, test: test.jsonl}")


def lines(rows: list[object]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def rows_and(*more: str | bytes) -> bytes:
    """The sound rows, and lines after them (from line 41 on)."""
    return lines(list(ROWS)).encode() + b"".join(m.encode() if isinstance(m, str) else m for m in more)


@dataclass(frozen=True)
class Case:
    """`said` is a pattern that the whole line after "pando: " matches."""

    name: str
    said: str
    files: dict[str, str | bytes] = field(default_factory=dict)
    arguments: str = "task check task.yaml"


CASES = [
    Case("no task file", r"none\.yaml: no such file", arguments="task check none.yaml"),
    Case("a folder as task", r"\. is a folder; name the task file in it", arguments="task check ."),
    Case("broken YAML", r"task\.yaml:7: not valid YAML: .*", {"task.yaml": TASK + "metric: [a\n"}),
    Case(
        "YAML that runs code", r"task\.yaml:6: not valid YAML: .*", {"task.yaml": TASK + "seed: !!python/name:os.x\n"}
    ),
    Case("unreadable task", r"task\.yaml:1: byte 0xe9 is not UTF-8; save .*", {"task.yaml": b"name: \xe9\n"}),
    Case("unknown key", r"task\.yaml:6: metrik: unknown key; known are .*", {"task.yaml": TASK + "metrik: accuracy\n"}),
    Case("wrong type", r"task\.yaml:7: budget\.minutes: .*number.*", {"task.yaml": TASK + "budget:\n  minutes: ten\n"}),
    Case("missing key", r"task\.yaml:1: instruction: is missing", {"task.yaml": TASK.replace("instruction", "# ")}),
    Case("unknown metric", r"task\.yaml:6: metric: f1 does not fit .*", {"task.yaml": TASK + "metric: f1\n"}),
    Case("no metric file", r"task\.yaml:6: metric: no such file: .*m\.py", {"task.yaml": TASK + "metric: m.py:f\n"}),
    Case(
        "broken metric file",
        r".*m\.py:1: not valid Python: .*",
        {"task.yaml": TASK + "metric: m.py:f\n", "m.py": "def f(p, o) return 1\n"},
    ),
    Case("no rows file", r"no such file: .*rows\.csv", {"task.yaml": TASK.replace("rows.jsonl", "rows.csv")}),
    Case("unknown format", r".*rows\.xlsx: rows are read from \.jsonl.*", {"task.yaml": TASK.replace("jsonl", "xlsx")}),
    Case(
        "malformed row", r"1 row cannot be used: rows\.jsonl:41: not JSON: .*Mend .*", {"rows.jsonl": rows_and("{\n")}
    ),
    Case(
        "rows without a field",
        r"7 rows cannot be used: rows\.jsonl:41: no field label; .*; and 2 more\. Mend them, or set `bad_rows: drop`.*",
        {"rows.jsonl": rows_and('{"text": "a"}\n' * 7)},
    ),
    Case(
        "unknown field",
        r".*rows\.jsonl has no field tweet; its fields are text, label: mend `fields` in the task",
        {"task.yaml": TASK.replace("input: text", "input: tweet")},
    ),
    Case(
        "unreadable encoding",
        r"1 row .*rows\.jsonl:41: byte 0xe9 at 14 is .*",
        {"rows.jsonl": rows_and(b'{"text": "caf\xe9"}')},
    ),
    Case("UTF-16", r".*rows\.jsonl is UTF-16; save it as UTF-8", {"rows.jsonl": lines(list(ROWS)).encode("utf-16")}),
    Case(
        "10 MB in one field",
        r"1 row .*rows\.jsonl:41: text has 10,000,000 characters; the limit is 1,000,000: shorten or split.*",
        {"rows.jsonl": rows_and(json.dumps({"text": "x" * 10_000_000, "label": "good"}))},
    ),
    Case("0 rows", r".*rows\.jsonl has no rows", {"rows.jsonl": "\n"}),
    Case(
        "1 class",
        r"rows\.jsonl: every row has the label 'good'; classifying needs two or more",
        {"rows.jsonl": lines([row for row in ROWS if row["label"] == "good"])},
    ),
    Case("too few rows", r"rows\.jsonl: 3 rows .* cannot fill .*: add rows", {"rows.jsonl": lines(list(ROWS[:3]))}),
    Case(
        "unknown label",
        r"test\.jsonl: 1 of 2 rows have labels that no training row has: 'goood' \(line 2\)\. Mend the labels.*",
        {
            "task.yaml": TWO_FILES,
            "test.jsonl": lines([{"text": "quite another", "label": "bad"}, {"text": "and more", "label": "goood"}]),
        },
    ),
    Case(
        "train is test",
        r"every row of rows\.jsonl is also in test\.jsonl: nothing is left to train on",
        {"task.yaml": TWO_FILES, "test.jsonl": lines(list(ROWS))},
    ),
    Case(
        "torn gzip",
        r".*rows\.jsonl\.gz: damaged gzip data .*",
        {
            "task.yaml": TASK.replace("jsonl", "jsonl.gz"),
            "rows.jsonl.gz": gzip.compress(lines(list(ROWS)).encode())[:-9],
        },
    ),
    Case(
        "no Parquet",
        r".*rows\.parquet: damaged Parquet after row 0: .*",
        {"task.yaml": TASK.replace("jsonl", "parquet"), "rows.parquet": "text,label\n"},
    ),
    Case(
        "ragged CSV",
        r"1 row cannot be used: rows\.csv:3: has 3 cells where the header has 2\. Mend .*",
        {"task.yaml": TASK.replace("jsonl", "csv"), "rows.csv": "text,label\na,good\nwell, no,bad\n"},
    ),
    Case(
        "objects wanted",
        r"40 rows cannot be used: rows\.jsonl:1: label is not JSON: .*",
        {"task.yaml": TASK.replace("classify", "extract")},
    ),
    Case("no such option", r".*--rungg.* \(see pando task show --help\)", arguments="task show task.yaml --rungg few"),
]


def pando(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PANDO_HOME": str(folder.parent / "home")}
    return subprocess.Popen(
        [sys.executable, "-m", "pando", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "work"
    made.mkdir()
    (made / "task.yaml").write_text(TASK)
    (made / "rows.jsonl").write_text(lines(list(ROWS)))
    return made


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_mistake_is_one_line(case: Case, folder: Path) -> None:
    for name, content in case.files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    before = sorted(folder.rglob("*"))
    process = pando(folder, *case.arguments.split())
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert out == ""
    assert err.startswith("pando: ") and err.count("\n") == 1, err
    assert re.fullmatch(case.said, err.removeprefix("pando: ").strip()), err
    assert sorted(folder.rglob("*")) == before


def test_the_sound_task_of_the_table_is_sound(folder: Path) -> None:
    process = pando(folder, "task", "check", "task.yaml")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "") and out.endswith("the task is sound\n")


def test_ctrl_c_is_one_line_and_130(folder: Path) -> None:
    (folder / "rows.jsonl").unlink()
    os.mkfifo(folder / "rows.jsonl")
    process = pando(folder, "task", "check", "task.yaml")
    with (folder / "rows.jsonl").open("w") as rows:  # opens once the command does: it is reading now
        rows.write(lines(list(ROWS)))
        rows.flush()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (130, "", "pando: stopped\n")
