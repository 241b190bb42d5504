"""The runner of the checks: verdicts, resuming on the same tree, and the exit code."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

CHECKS = {
    "good": ('"""Shows good."""\nopen("ran", "a").write("x")\nprint("3 of 3 [ok]")', 0),
    "bad": ('"""Shows bad."""\nimport os\nprint("2 of 3")\nraise SystemExit(not os.path.exists("ran"))', 1),
    "broken": ('"""Shows broken."""\nraise ValueError("mine")', 1),
    "absent": ('"""Shows absent."""\nprint("no accelerator")\nraise SystemExit(77)', 0),
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "verify" / "run.py"
    spec = importlib.util.spec_from_file_location("verify_run", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "verify_run", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "with space"
    (root / "checks").mkdir(parents=True)
    for name, (code, _) in CHECKS.items():
        (root / "checks" / f"check_{name}.py").write_text(code)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    (root / ".gitignore").write_text("/ran\n")
    return root


def go(run: ModuleType, root: Path, *names: str) -> int:
    return int(run.main(list(names), root / "checks", root, root.parent / "state"))


@pytest.mark.parametrize("name", CHECKS)
def test_exit_codes(run: ModuleType, root: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert go(run, root, name) == CHECKS[name][1]
    assert f"Shows {name}." in capsys.readouterr().out


def test_one_failure_fails_all_and_the_table_tells_them_apart(
    run: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go(run, root) == 1
    table = capsys.readouterr().out.split("What was checked")[1]
    for text in ("holds", "FAILS", "cannot run here", "3 of 3 [ok]", "ValueError: mine", "no accelerator"):
        assert text in table


def test_a_success_is_kept_until_the_tree_changes(run: ModuleType, root: Path) -> None:
    ran = root / "ran"
    for _ in range(2):
        assert go(run, root, "good") == 0
    assert ran.read_text() == "x"
    (root / "new file").write_text("new")
    assert go(run, root, "good") == 0
    assert ran.read_text() == "xx"


def test_a_failure_is_run_again(run: ModuleType, root: Path) -> None:
    assert go(run, root, "bad") == 1
    (root / "ran").touch()  # ignored by git: the tree is the same
    assert go(run, root, "bad") == 0


def test_an_unknown_name_is_refused(run: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert go(run, root, "nonsense") == 2
    assert "good" in capsys.readouterr().err
