"""Pulling from the hub: one on the loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pando.errors import BaseModelError
from pando.interface import Identity
from pando.model.base import open_base, pulled_bases
from pando.model.checkpoint import save_model
from pando.model.pull import pull
from tests.model import tiny
from tests.model.hub import COMMIT, Hub, serving

REPO = "owner/tiny-model"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = tiny.write_base(tmp_path / "repository")
    for name in ("LICENSE", "README.md", "pytorch_model.bin", "consolidated.safetensors", "run.py"):
        (folder / name).write_text("x" * 100)
    with serving(folder) as hub:
        yield hub


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Hub]:
    """Some thirty megabytes: the library keeps an interrupted download by blocks of ten."""
    with serving(tiny.write_base(tmp_path / "large", tiny.config(hidden=20_000))) as hub:
        yield hub


def started(hub: Hub, home: Path) -> subprocess.Popen[str]:
    """The installed command."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.endpoint, "PANDO_HOME": str(home)}
    command = [sys.executable, "-m", "pando", "pull", REPO]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def pulling(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Identity]:
    def run(hub: Hub, revision: str | None = None) -> Identity:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        return pull(REPO, revision=revision)

    return run


def test_brings_only_what_the_base_needs_at_one_commit(hub: Hub, home: Path) -> None:
    with started(hub, home) as process:
        out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert out.startswith("owner/tiny-model is ready: ")
    base = open_base(REPO)
    identity = base.identity
    assert (identity.name, identity.revision, identity.licence) == (REPO, COMMIT, "mit")
    assert identity.source == f"https://huggingface.co/{REPO}"
    found = {path.name for path in base.folder.iterdir()}
    files = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
    assert found == files | {"LICENSE", "pando.json"}
    assert (base.folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert all(path.startswith((f"/api/models/{REPO}", f"/{REPO}/resolve/{COMMIT}/")) for _, path, _ in hub.asked)
    assert not any((home / "cache" / "hub").iterdir())


def test_shards_of_the_index_and_no_others(hub: Hub, pulling, tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    folder.mkdir()
    save_model(tiny.model(tiny.config()), folder, {}, max_shard_bytes=100_000)
    hub.files |= {path.name: path.read_bytes() for path in folder.iterdir()}
    pulling(hub)
    base = open_base(REPO)
    assert base.module().config == tiny.config()
    assert not (base.folder / "model.safetensors").exists()


def test_second_pull_fetches_nothing_and_a_commit_needs_no_hub(hub: Hub, pulling) -> None:
    first = pulling(hub)
    hub.asked.clear()
    assert pulling(hub) == first
    assert not any("/resolve/" in path for _, path, _ in hub.asked)
    hub.asked.clear()
    assert pulling(hub, COMMIT) == first
    assert hub.asked == []


def starts(hub: Hub) -> list[int]:
    """The bytes at which the weights were asked for again."""
    return [int(part[6:-1]) for _, path, part in hub.asked if part and path.endswith("model.safetensors")]


def test_broken_connection_is_resumed_where_it_broke(large: Hub, pulling) -> None:
    large.cut = {"model.safetensors": 25_000_000}
    large.go.set()
    pulling(large)
    assert starts(large) == [20 << 20]  # the library writes blocks of ten
    assert (open_base(REPO).folder / "model.safetensors").read_bytes() == large.files["model.safetensors"]


def test_killed_pull_leaves_no_base_and_the_next_one_keeps_whole_files(large: Hub, home: Path, pulling) -> None:
    large.cut = {"model.safetensors": 25_000_000}
    with started(large, home) as process:
        assert large.held.wait(60)
        while not list(home.rglob("tokenizer.json")):
            time.sleep(0.01)
        process.kill()
    large.go.set()
    assert pulled_bases() == []
    large.asked.clear()
    pulling(large)
    fetched = [path.split("/")[-1] for method, path, _ in large.asked if method == "GET" and "/resolve/" in path]
    assert "model.safetensors" in fetched and "tokenizer.json" not in fetched
    base = open_base(REPO)
    assert (base.folder / "model.safetensors").read_bytes() == large.files["model.safetensors"]
    assert [path.name for path in (home / "bases").iterdir() if not path.name.endswith(".lock")] == [base.folder.name]


@pytest.mark.parametrize(
    ("change", "revision", "said"),
    [
        (lambda hub: hub.files.pop("model.safetensors"), None, "has no safetensors weights"),
        (lambda hub: hub.files.pop("tokenizer.json"), None, r"has no tokenizer\.json"),
        (
            lambda hub: hub.lies.update({"model.safetensors": "0" * 64}),
            None,
            r"not what the hub says",
        ),
        (lambda hub: None, "nonsense", "has no revision 'nonsense'"),
        (lambda hub: setattr(hub, "repo", "owner/other"), None, "has no model 'owner/tiny-model'"),
        (lambda hub: setattr(hub, "endpoint", "http://127.0.0.1:9"), None, "cannot fetch owner/tiny-model"),
    ],
)
def test_what_cannot_be_had_is_one_line_and_leaves_nothing(
    hub: Hub, home: Path, pulling, change, revision, said
) -> None:
    change(hub)
    with pytest.raises(BaseModelError, match=said):
        pulling(hub, revision)
    assert pulled_bases() == []
    assert not (home / "bases").exists() or all(path.name.endswith(".lock") for path in (home / "bases").iterdir())


def test_ctrl_c_ends_a_download_at_once(large: Hub, home: Path) -> None:
    large.cut = {"model.safetensors": 25_000_000}
    with started(large, home) as process:
        assert large.held.wait(60)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "pando: stopped"
    assert pulled_bases() == []
