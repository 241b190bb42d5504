"""The seam to Daft: alone in importing it, silent, and open to URLs."""

from __future__ import annotations

import functools
import gzip
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pando.corpus import engine
from pando.corpus.parts import write_table
from pando.corpus.readers import How, documents
from pando.errors import PandoError

pytest.importorskip("daft")
SOURCE = Path(engine.__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("site")
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "one"}\n{"text": "two"}\n'))
    pq.write_table(pa.table({"text": ["three", "four"]}), folder / "b.parquet")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_only_one_module_imports_the_engines() -> None:
    importing = [
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if any(line.split()[:2] in (["import", "daft"], ["import", "ray"]) or line.split()[:2] == ["from", "daft"]
               for line in path.read_text().splitlines())
    ]  # fmt: skip
    assert importing == ["corpus/engine.py"]


def test_telemetry_is_off_before_anything_is_imported() -> None:
    code = "import sys, os; from pando.corpus import engine; print('daft' in sys.modules, os.environ['DO_NOT_TRACK'], "
    code += "os.environ['DAFT_ANALYTICS_ENABLED'], os.environ['RAY_USAGE_STATS_ENABLED'])"
    clean = {name: value for name, value in os.environ.items() if name not in ("DO_NOT_TRACK",)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean, check=True)
    assert found.stdout.split() == ["False", "1", "0", "0"]


def test_urls_are_listed_and_read(site: str) -> None:
    engine.start(1)
    for name, texts in (("a.jsonl.gz", ["one", "two"]), ("b.parquet", ["three", "four"])):
        [(url, size)] = engine.list_urls(f"{site}/{name}")
        assert url == f"{site}/{name}" and size > 0
        with engine.opened(url) as file:
            assert [one.text for one in documents(file, url, "auto", How("text", "utf-8", 1000))] == texts
    with pytest.raises(PandoError, match="names nothing that can be listed"):
        engine.list_urls(f"{site}/none.txt")


def test_a_server_that_goes_away_is_one_line(site: str) -> None:
    engine.start(1)
    with pytest.raises(PandoError, match=r"none\.jsonl cannot be read"), engine.opened(f"{site}/none.jsonl") as file:
        file.read()


def test_what_a_task_raises_is_one_line_here(tmp_path: Path) -> None:
    engine.start(1)
    write_table(tmp_path / "t.parquet", pa.table({"text": pa.array(["a"], pa.large_string())}))
    settings = {"classifier": str(tmp_path / "none.safetensors")}
    step = {"stage": "quality", "settings": settings, "reads": str(tmp_path / "t.parquet"), "out": str(tmp_path / "o")}
    with pytest.raises(PandoError, match="is not there"):
        list(engine.run("score", [{"steps": [step]}]))
