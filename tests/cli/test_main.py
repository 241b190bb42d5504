"""The frame of the command line: its verbs, and one line for every mistake."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from pando import cli
from pando.errors import PandoError


def pando(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pando", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_explains_itself(verb: str) -> None:
    done = pando(verb, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: pando {verb}")


def test_every_module_of_the_command_line_is_a_verb() -> None:
    modules = {path.stem for path in Path(cli.__file__).parent.glob("[!_]*.py")}
    assert modules == set(cli.VERBS)


def test_version() -> None:
    assert pando("--version").stdout == f"pando {__import__('pando').__version__}\n"


@pytest.mark.parametrize("arguments", [["nonsense"], ["--nonsense"], ["doctor", "--nonsense"]])
def test_wrong_usage_is_one_line(arguments: list[str]) -> None:
    done = pando(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("pando: ") and done.stderr.count("\n") == 1 and "--help" in done.stderr


def raises(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (PandoError("task.yaml line 3: no such\nfield"), 2, "pando: task.yaml line 3: no such field\n"),
        (KeyboardInterrupt(), 130, "pando: stopped\n"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 2, "pando: the disk is full; make room and run it again"),
        (OSError(errno.EADDRINUSE, "in use"), 2, "pando: the port is in use; choose another with --port\n"),
        (PermissionError(errno.EACCES, "denied", "rows.csv"), 2, "pando: rows.csv: permission denied"),
    ],
)
def test_mistakes(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = types.SimpleNamespace(command=raises(error))
    monkeypatch.setitem(sys.modules, "pando.cli.doctor", module)
    monkeypatch.setattr(sys, "argv", ["pando", "doctor"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == code
    captured = capsys.readouterr()
    assert captured.err.startswith(said) and captured.err.count("\n") == 1 and captured.out.strip() == ""


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pando.cli.doctor", types.SimpleNamespace(command=raises(ZeroDivisionError())))
    monkeypatch.setattr(sys, "argv", ["pando", "doctor"])
    with pytest.raises(ZeroDivisionError):
        cli.main()
