"""`pando adapt` as a command: what goes where, and what a user's mistakes look like."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.adapt.tasks import make_task


def run(folder: Path, *arguments: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ, PANDO_LEDGER=f"sqlite:///{folder / 'ledger.sqlite'}", COLUMNS="140")
    if home:
        environment["PANDO_HOME"] = str(home)
    command = [sys.executable, "-m", "pando", "adapt", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.yaml"], "nowhere.yaml"),
        (["task.yaml", "--mode", "race"], "race"),
        (["task.yaml", "--base", "absent-base"], "pando pull"),
        (["task.yaml", "--out", "task.yaml"], "cannot make the folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, arguments, said):
    make_task(tmp_path)
    done = run(tmp_path, *arguments, home=tmp_path / "home")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("pando: ")
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.real
def test_json_is_exactly_the_report_and_the_page_is_there(tmp_path):
    make_task(tmp_path, train=120, test=60, rungs=["floor", "zero"])
    done = run(tmp_path, "task.yaml", "--out", "out", "--mode", "sweep", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    assert [rung["status"] for rung in report["rungs"]] == ["ok", "ok"]
    assert "<html" in (tmp_path / "out" / "report.html").read_text()
    assert "zero: building" in done.stderr
    again = run(tmp_path, "task.yaml", "--out", "out", "--mode", "sweep")
    assert again.returncode == 0
    assert "Decision" in again.stdout
    assert report["test"]["openings"] == 1
    assert json.loads((tmp_path / "out" / "report.json").read_text())["test"]["openings"] == 1


@pytest.mark.real
def test_ctrl_c_stops_with_130_and_what_was_done_is_kept(tmp_path):
    make_task(tmp_path, train=600, test=60, rungs=["floor", "zero", "few"])
    environment = dict(os.environ, PANDO_LEDGER=f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    command = [sys.executable, "-m", "pando", "adapt", "task.yaml", "--out", "out", "--mode", "sweep"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    items = tmp_path / "out" / "items.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (items.exists() and b'"zero"' in items.read_bytes()):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "pando: stopped"
    assert "Traceback" not in errors
    assert items.read_bytes().endswith(b"\n")
    assert not (tmp_path / "out" / "report.json").exists()
