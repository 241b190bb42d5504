"""Whatever a user can get wrong about models, skins, servers and disks: one line and exit code 2, nothing half written.

Continues the table of `test_bad_input`; here every mistake is a function that makes it, in a folder where `base` is a
tiny base model, `skin` a skin on it, and `task.yaml` and `rows.jsonl` are sound.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pando.skin import Skin
from pando.skin.parts import Prompt
from tests.test_bad_input import ROWS, TASK, lines
from tests.tiny import tiny_base

Mistake = Callable[[Path], object]
CASES: dict[str, tuple[str, str, Mistake]] = {  # name: command, what the line says, the mistake
    "no such base": (
        "adapt task.yaml --base nonsense --out out",
        r".*nonsense.*pando pull.*",
        lambda folder: None,
    ),
    "the default base is not here": (
        "adapt task.yaml --out out",
        r".*smollm2-135m.*pando pull smollm2-135m.*",
        lambda folder: None,
    ),
    "no GGUF": (
        "pull broken.gguf",
        r".*broken\.gguf.*",
        lambda folder: (folder / "broken.gguf").write_bytes(b"no GGUF at all"),
    ),
    "a mixture in place of something else": (
        "upcycle base --out base",
        r"base exists already; .*--force",
        lambda folder: None,
    ),
    "torn weights": (
        "pull base --name torn",
        r".*model\.safetensors.*",
        lambda folder: cut(folder / "base" / "model.safetensors"),
    ),
    "a pickle": (
        "pull base --name pickled",
        r".*pickle.*",
        lambda folder: (folder / "base" / "model.safetensors").rename(folder / "base" / "pytorch_model.bin"),
    ),
    "a template that attacks": (
        "adapt task.yaml --base base --out out",
        r".*template.*",
        lambda folder: template(folder, "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    ),
    "a template without an end": (
        "adapt task.yaml --base base --out out",
        r".*template.*",
        lambda folder: template(folder, "{% for i in range(999999999) %}{{ i }}{% endfor %}"),
    ),
    "no skin": ("predict nowhere rows.jsonl", r".*no skin folder nowhere.*", lambda folder: None),
    "a damaged skin": (
        "predict skin rows.jsonl",
        r".*skin\.yaml.*damaged.*",
        lambda folder: cut(folder / "skin" / "skin.yaml"),
    ),
    "a skin of a newer format": (
        "skins show skin",
        r".*skin\.yaml has format version 99; .*upgrade.*",
        lambda folder: edit(folder / "skin" / "skin.yaml", "format_version: 1", "format_version: 99"),
    ),
    "a skin on another base": (
        "predict skin rows.jsonl --base base",
        r".*(made on|another base|other base).*force.*",
        lambda folder: edit(folder / "skin" / "skin.yaml", "hash: sha256:", "hash: sha256:beef"),
    ),
    "no rows to answer": ("predict skin none.jsonl", r".*none\.jsonl.*", lambda folder: None),
    "an address without a key": (
        "serve base --skins skin --host 0.0.0.0 --port 0",
        r".*key.*",
        lambda folder: None,
    ),
    "nothing to serve": ("serve base --skins nowhere --port 0", r".*no folder nowhere.*", lambda folder: None),
    "broken settings": (
        "ledger",
        r".*settings\.yaml.*unknown setting colour.*",
        lambda folder: (folder.parent / "home" / "settings.yaml").write_text("colour: red\n"),
    ),
    "a ledger that is none": (
        "ledger",
        r".*ledger.*",
        lambda folder: (folder.parent / "home" / "ledger.sqlite").write_bytes(b"not a database, certainly" * 99),
    ),
    "an --out that is a file": ("adapt task.yaml --base base --out task.yaml", r".*task\.yaml.*", lambda folder: None),
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def template(folder: Path, text: str) -> None:
    path = folder / "base" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": text}))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    base = tiny_base(folder / "base")
    (folder / "task.yaml").write_text(TASK + "rungs: [zero]\n")
    (folder / "rows.jsonl").write_text(lines(list(ROWS)))
    Skin(
        name="mood",
        kind="classify",
        rung="zero",
        method="score",
        prompt=Prompt("Is it good or bad?", ("text",)),
        base=base.identity,
        labels=("bad", "good"),
    ).save(folder / "skin")
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return Path(shutil.copytree(sound, tmp_path / "work"))


def start(folder: Path, *command: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PANDO_HOME": str(folder.parent / "home"), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def pando(folder: Path, arguments: str) -> subprocess.Popen[str]:
    return start(folder, sys.executable, "-m", "pando", *arguments.split())


def the_line(process: subprocess.Popen[str], code: int = 2) -> str:
    """What is said after `pando: `; notes about progress may come before."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert out == ""
    last = err.splitlines()[-1]
    assert last.startswith("pando: "), err
    return last.removeprefix("pando: ")


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_line(name: str, folder: Path) -> None:
    arguments, said, mistake = CASES[name]
    mistake(folder)
    assert re.fullmatch(said, the_line(pando(folder, arguments)))
    left = [path.name for path in folder.parent.rglob("*") if ".tmp" in path.name]
    assert left == []
    assert not list((folder.parent / "home" / "bases").glob("[!.]*"))  # lock files may stay


def test_a_port_in_use(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = the_line(pando(folder, f"serve base --port {port}"))
    assert re.fullmatch(rf"port {port} of 127\.0\.0\.1 is in use.*--port", line)


def test_a_full_disk(folder: Path) -> None:
    (folder / "out").mkdir()
    script = (
        'mount -t tmpfs -o size=48k none out && "$0" -m pando adapt task.yaml --base base --out out; code=$?; '
        "find out -name '*.tmp' >&2; exit $code"
    )
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here: unshare -rm is not allowed")
    line = the_line(start(folder, "unshare", "-rm", "sh", "-c", script, sys.executable))
    assert "the disk is full" in line


@pytest.mark.parametrize("arguments", ["adapt task.yaml --base base --out out", "serve base --skins skin --port 0"])
def test_ctrl_c(folder: Path, arguments: str) -> None:
    process = pando(folder, arguments)
    assert process.stderr
    time.sleep(0.1)
    process.stderr.readline()  # it is at work
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err
