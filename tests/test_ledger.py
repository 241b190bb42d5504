from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from pando.errors import FormatVersionError, PandoError
from pando.interface import Identity, Latency, Usage
from pando.ledger import FORMAT_VERSION, Ledger, Line, Seconds, open_ledger

BASE = Identity(name="tiny", hash="sha256:abc", source="test")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a folder" / "ledger.sqlite"


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL server of the test's own, reachable by a socket in its folder only."""
    pytest.importorskip("psycopg", reason="no PostgreSQL driver here")
    if not shutil.which("initdb"):
        pytest.skip("no PostgreSQL server here")
    folder = Path(tempfile.mkdtemp())
    owner: dict[str, Any] = {}
    if os.geteuid() == 0:  # it refuses to run as root
        owner = {"user": "postgres"}
        shutil.chown(folder, "postgres")
    subprocess.run(["initdb", "-A", "trust", "-U", "postgres", "-D", folder / "data"], check=True, cwd="/", **owner)
    control = ["pg_ctl", "-w", "-D", folder / "data", "-l", folder / "log"]
    subprocess.run([*control, "-o", f"-k {folder} -c listen_addresses=", "start"], check=True, cwd="/", **owner)
    yield f"postgresql+psycopg://postgres@/postgres?host={folder}"
    subprocess.run([*control, "-m", "immediate", "stop"], check=True, cwd="/", **owner)
    shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgres"])
def ledger(request: pytest.FixtureRequest) -> Iterator[Ledger]:
    if request.param == "sqlite":
        url = f"sqlite:///{request.getfixturevalue('file')}"
    else:
        url = request.getfixturevalue("postgres")
        with sa.create_engine(url).begin() as connection:
            connection.execute(sa.text("DROP TABLE IF EXISTS pando_ledger, pando_ledger_lines"))
    with Ledger(url) as made:
        yield made


def test_a_line_keeps_everything(ledger: Ledger) -> None:
    made = ledger.record(
        "call",
        skin="tweets",
        skin_version="sha256:1",
        base=BASE,
        key="key-1234",
        usage=Usage(10, 4, 3),
        seconds=Latency(queue=1, first_token=3, total=7, compute=2.5),
        usd=0.5,
        detail={"route": "/v1/chat/completions"},
    )
    (line,) = ledger.lines()
    assert line.pop("at") > 1e9 and len(line.pop("day")) == 10
    assert line == {
        "id": made,
        "kind": "call",
        "skin": "tweets",
        "skin_version": "sha256:1",
        "base": "tiny",
        "base_hash": "sha256:abc",
        "key": "key-1234",
        "prompt_tokens": 10,
        "cached_tokens": 4,
        "completion_tokens": 3,
        "queue_seconds": 1,
        "prefill_seconds": 2,
        "decode_seconds": 4,
        "compute_seconds": 2.5,
        "usd": 0.5,
        "detail": {"route": "/v1/chat/completions"},
    }


def test_seconds_of_a_latency_add_up_to_its_total() -> None:
    latency = Latency(queue=1, first_token=3, total=7)
    assert Seconds.of(latency) == Seconds(1, 2, 4)
    assert Seconds.of(Latency(queue=1, total=3)) == Seconds(1, 0, 2)  # no first token: scores and embeddings
    assert Seconds(1, 2, 3, 4) + Seconds(1, 1, 1, 1) == Seconds(2, 3, 4, 5)


def test_seconds_with_an_unknown_name_are_refused(ledger: Ledger) -> None:
    with pytest.raises(TypeError, match="waiting"):
        ledger.record("build", seconds={"waiting": 1.0})


def test_summary_by_skin_day_and_kind(ledger: Ledger) -> None:
    noon = 1_700_000_000.0
    ledger.write(
        [
            Line(kind="call", skin="a", skin_version="1", base=BASE, usage=Usage(5, 1, 2), usd=1, at=noon),
            Line(kind="call", skin="a", skin_version="2", base=BASE, usage=Usage(7), usd=3, at=noon),
            Line(kind="call", base=BASE, usage=Usage(11), usd=2, at=noon + 86400),
            Line(kind="build", skin="a", skin_version="2", seconds={"compute": 9.0}, usd=10, at=noon + 2),
        ]
    )
    skins = [(g["skin"], g["skin_version"], g["lines"], g["prompt_tokens"], g["usd"]) for g in ledger.summary("skin")]
    assert skins == [("a", "2", 2, 7, 13), ("tiny", None, 1, 11, 2), ("a", "1", 1, 5, 1)]
    assert [(g["day"], g["lines"]) for g in ledger.summary("day")] == [("2023-11-14", 3), ("2023-11-15", 1)]
    kinds = {g["kind"]: (g["lines"], g["compute_seconds"]) for g in ledger.summary("kind")}
    assert kinds == {"build": (1, 9), "call": (3, 0)}
    assert [g["kind"] for g in ledger.summary("kind", last=1)] == ["call"]


def test_last_lines_come_oldest_first(ledger: Ledger) -> None:
    ledger.write([Line(kind="call", at=float(at), id=str(at)) for at in (3, 1, 2)])
    assert [line["id"] for line in ledger.lines(2)] == ["2", "3"]


def test_openings_are_found_by_the_test_split(ledger: Ledger) -> None:
    ledger.record("test_opening", detail={"test_hash": "sha256:t", "skin": "a"})
    ledger.record("test_opening", detail={"test_hash": "sha256:other"})
    ledger.record("eval", detail={"test_hash": "sha256:t"})
    assert [line["detail"]["skin"] for line in ledger.openings("sha256:t")] == ["a"]


def test_threads_share_one_ledger(ledger: Ledger) -> None:
    def work() -> None:
        for _ in range(20):
            ledger.record("call", usage=Usage(1))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.summary("kind")[0]["prompt_tokens"] == 160


def test_many_lines_are_all_or_none(ledger: Ledger) -> None:
    with pytest.raises(PandoError):
        ledger.write([Line(kind="call", id="same"), Line(kind="call", id="same")])
    assert ledger.lines() == []


def test_another_process_adds_to_it(ledger: Ledger) -> None:
    code = "import sys; from pando.ledger import Ledger; Ledger(sys.argv[1]).record('build')"
    url = ledger._engine.url.render_as_string(hide_password=False)
    subprocess.run([sys.executable, "-c", code, url], check=True)
    ledger.record("call")
    assert [line["kind"] for line in ledger.lines()] == ["build", "call"]


def test_a_newer_ledger_is_refused_by_name(ledger: Ledger) -> None:
    url = ledger._engine.url
    with sa.create_engine(url).begin() as connection:
        connection.execute(sa.text(f"UPDATE pando_ledger SET format_version = {FORMAT_VERSION + 1}"))
    with pytest.raises(FormatVersionError, match=r"the ledger .*version 2"):
        Ledger(url.render_as_string(hide_password=False))


def test_a_damaged_ledger_is_named(tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite"
    file.write_bytes(b"this is no database, but long enough to look at" * 50)
    with pytest.raises(PandoError, match=r"ledger\.sqlite is damaged"):
        Ledger(f"sqlite:///{file}")


def test_a_locked_ledger_says_so(file: Path) -> None:
    short = Ledger(f"sqlite:///{file}", wait=0.1)
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(PandoError, match="locked by another program"):
        short.record("call")
    holder.execute("ROLLBACK")
    short.record("call")


def test_a_password_is_never_said() -> None:
    pytest.importorskip("psycopg", reason="no PostgreSQL driver here")
    with pytest.raises(PandoError) as refused:
        Ledger("postgresql+psycopg://me:secret@127.0.0.1:1/none")
    assert "secret" not in str(refused.value) and "127.0.0.1" in str(refused.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("no url", "not one"),
        ("nosuchdb://x", "not one"),
        ("sqlite:////proc/no/ledger", "cannot be made"),
        ("sqlite:////", "cannot be opened"),
    ],
)
def test_a_wrong_url_is_one_line(url: str, said: str) -> None:
    with pytest.raises(PandoError, match=said) as caught:
        Ledger(url)
    assert "\n" not in str(caught.value)


def test_a_missing_driver_is_named() -> None:
    with pytest.raises(PandoError, match="driver is missing"):
        Ledger("oracle://x")


def test_the_settings_name_the_ledger(home: Path) -> None:
    with open_ledger() as ledger:
        ledger.record("call")
    assert (home / "ledger.sqlite").exists()


def test_a_kill_keeps_every_recorded_line(file: Path) -> None:
    """The process dies without closing anything, right after the line whose id it printed."""
    code = (
        "import os, sys; from pando.ledger import Ledger\n"
        "l = Ledger(sys.argv[1])\n"
        "print(*[l.record('call') for _ in range(5)], flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, f"sqlite:///{file}"], capture_output=True, text=True)
    assert done.returncode == -9
    assert [line["id"] for line in Ledger(f"sqlite:///{file}").lines()] == done.stdout.split()
