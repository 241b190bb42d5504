"""What many tests need: the embedded base model, and public data sets that are not part of the repository."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import configuration, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch loads: workers of one run share the cores
os.environ["HF_HUB_OFFLINE"] = "0"  # tests of pulls talk to a hub of their own; checks that are imported say "1"
# Started in the background a process ignores Ctrl-C, and so would the commands that the tests send it to.
signal.signal(signal.SIGINT, signal.default_int_handler)

_ROOT = Path(__file__).resolve().parent.parent
configuration.set_hypothesis_home_dir(_ROOT / ".cache" / "hypothesis")
settings.register_profile("pando", deadline=None)  # the machine may be busy
settings.load_profile("pando")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if _base_pulled():
        return
    reason = pytest.mark.skip(reason="the embedded base is not here: run `pando pull smollm2-135m`")
    for item in items:
        if item.get_closest_marker("real"):
            item.add_marker(reason)


def _base_pulled() -> bool:
    from pando.settings import load_settings

    return (load_settings().bases / "smollm2-135m" / "config.json").is_file()


@pytest.fixture(scope="session")
def real_model() -> Iterator[Any]:
    """SmolLM2-135M-Instruct, loaded once in each worker; mark tests that use it with `real`."""
    if not _base_pulled():
        pytest.skip("the embedded base is not here: run `pando pull smollm2-135m`")
    import pando

    model = pando.load("smollm2-135m")
    yield model
    model.close()


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of public data sets: `PANDO_DATA`, by default `../shared/data` beside the repository."""
    folder = Path(os.environ.get("PANDO_DATA") or _ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"the public data sets are not here: {folder} (set PANDO_DATA)")
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty PANDO_HOME of the test's own."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("PANDO_HOME", str(folder))
    return folder
