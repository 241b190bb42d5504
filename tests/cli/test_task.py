"""`pando task`: what is sound is told, all that is wrong is listed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TASK = """\
name: mood
kind: classify
instruction: Is it good or bad?
data: {train: train.csv, test: test.csv}
fields: {input: text, output: label}
"""


@pytest.fixture
def task(tmp_path: Path) -> Path:
    rows = [f"text {i} of {i * i * i},{'good' if i % 3 else 'bad'}" for i in range(160)]
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *rows[:110], rows[120], " ,good"]))
    (tmp_path / "test.csv").write_text("\n".join(["text,label", *rows[110:]]))
    (tmp_path / "task.yaml").write_text(TASK)
    return tmp_path / "task.yaml"


def pando(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pando", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_check_tells_what_would_be_used(task: Path) -> None:
    done = pando("task", "check", task)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "task    mood: classify, measured by accuracy, rungs floor, zero, few, knn, probe, lora",
        "rows    112 of train.csv, 50 of test.csv",
        "splits  train 74, select 18, confirm 18, test 50",
        "labels  2: good 73, bad 37",
        "dropped 1 of train.csv: no text in the input (line 113)",
        "dropped 1 of train.csv: also in the test file (line 112)",
        "note    50 test rows: a share's 95 % interval is up to ±14 points",
        "the task is sound",
    ]


def test_check_as_json_is_only_json_and_adds_up(task: Path) -> None:
    done = pando("task", "check", task, "--json")
    account = json.loads(done.stdout)
    rows = account["rows"]
    assert account["task"]["name"] == "mood" and account["hash"].startswith("sha256:")
    assert rows["overlap"] == {"exact": 1, "near": 0}
    assert sum(rows["read"].values()) == sum(rows["used"].values()) + sum(d["count"] for d in rows["dropped"])


def test_check_lists_every_problem_of_a_task_file(task: Path) -> None:
    task.write_text(TASK.replace("kind: classify", "kind: guess") + "seed: -1\nlabels: [good]\n")
    done = pando("task", "check", task)
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.split(":")[2] for line in done.stderr.splitlines()] == ["2", "6", "7"]


def test_schema_is_json_schema(tmp_path: Path) -> None:
    schema = json.loads(pando("task", "schema").stdout)
    assert schema["additionalProperties"] is False and "instruction" in schema["required"]
