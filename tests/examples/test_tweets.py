"""The demo's rows, out of an archive of the same shape (the real one is fetched by `make verify ONLY=demo`)."""

from __future__ import annotations

import importlib.util
import io
import json
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

TABLE = "1\t2.7\t LMAO, &amp; AMAZING! \r\n2\t-0.4\tdie die, die\r\n3\t0\tso so\r\n" + "".join(
    f"{n}\t{1 if n % 3 else -1}\ttweet {n}\r\n" for n in range(4, 60)
)


@pytest.fixture(scope="module")
def tweets() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "examples" / "tweets" / "tweets.py"
    spec = importlib.util.spec_from_file_location("tweets", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def packed(name: str, data: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return file.getvalue()


@pytest.fixture
def archive(tweets: ModuleType) -> bytes:
    return packed(tweets.INNER, packed(tweets.TABLE, TABLE.encode()))


def test_mood_is_the_sign_and_zero_is_dropped(tweets: ModuleType, archive: bytes) -> None:
    rows = tweets.rows(archive)
    assert rows[:2] == [
        {"text": "LMAO, & AMAZING!", "label": "positive"},
        {"text": "die die, die", "label": "negative"},
    ]
    assert len(rows) == 58


def test_the_split_is_fixed_and_apart(
    tweets: ModuleType, archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tweets, "fetch", lambda: archive)
    made = [tweets.build(tmp_path / name, train=30, test=20) for name in ("a", "b c")]
    for name, count in (("train.jsonl", 30), ("test.jsonl", 20)):
        first, second = ((task.parent / name).read_text().splitlines() for task in made)
        assert first == second and len(first) == count
    texts = [
        json.loads(line)["text"] for name in ("train", "test") for line in (tmp_path / "a" / f"{name}.jsonl").open()
    ]
    assert len(set(texts)) == 50


def test_the_task_file_loads(
    tweets: ModuleType, archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pando.task import Task

    monkeypatch.setattr(tweets, "fetch", lambda: archive)
    task = Task.load(tweets.build(tmp_path))
    assert (task.kind, task.metric, len(task.rungs)) == ("classify", "accuracy", 6)
