"""What was spent: one line for each build, evaluation, opening of a test split, served call and pretraining session.

SQLite in `$PANDO_HOME` by default, PostgreSQL by URL, both through SQLAlchemy. A line is on disk when `record`
returns, so a crash loses at most the call in flight. Several threads and processes may write to one ledger.

Units: tokens are counts, times seconds, money US dollars, `at` seconds since 1970 (UTC), `day` the UTC date.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError

from pando.errors import PandoError
from pando.files import check_format
from pando.interface import Identity, Latency, Usage
from pando.settings import load_settings

FORMAT_VERSION = 1
Kind = Literal["build", "call", "eval", "pretrain", "test_opening"]
By = Literal["skin", "day", "kind"]

_meta = sa.MetaData()
_schema = sa.Table("pando_ledger", _meta, sa.Column("format_version", sa.Integer, primary_key=True))
_lines = sa.Table(
    "pando_ledger_lines",
    _meta,
    sa.Column("id", sa.String(80), primary_key=True),
    sa.Column("at", sa.Float, nullable=False, index=True),
    sa.Column("day", sa.String(10), nullable=False),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("skin", sa.Text),
    sa.Column("skin_version", sa.Text),
    sa.Column("base", sa.Text),
    sa.Column("base_hash", sa.Text),
    sa.Column("key", sa.Text),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("cached_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("queue_seconds", sa.Float, nullable=False),
    sa.Column("prefill_seconds", sa.Float, nullable=False),
    sa.Column("decode_seconds", sa.Float, nullable=False),
    sa.Column("compute_seconds", sa.Float, nullable=False),
    sa.Column("usd", sa.Float, nullable=False),
    sa.Column("detail", sa.JSON, nullable=False),
)
SUMS = (
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "queue_seconds",
    "prefill_seconds",
    "decode_seconds",
    "compute_seconds",
    "usd",
)


def new_id() -> str:
    """An id that no other line has; ids sort by the time they were made, to the millisecond."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(6)}"


@dataclass(frozen=True)
class Seconds:
    """Where the time of a line went. `compute` is its share of the machine's busy time, which is what it cost."""

    queue: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    compute: float = 0.0

    @classmethod
    def of(cls, latency: Latency) -> Seconds:
        """The seconds of one answer: prefill lasts from leaving the queue to the first token, decode from there on."""
        prefill = max(0.0, latency.first_token - latency.queue)
        decode = max(0.0, latency.total - max(latency.first_token, latency.queue))
        return cls(latency.queue, prefill, decode, latency.compute)

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(
            self.queue + other.queue,
            self.prefill + other.prefill,
            self.decode + other.decode,
            self.compute + other.compute,
        )


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the ledger.

    Attributes:
        kind: "build" of a rung, "eval" of a candidate, "test_opening" of a sealed split, a served "call", or a session
            of a "pretrain" run, with forecast and actual figures in `detail` once it is finished.
        skin: the skin's name; None for the base itself.
        skin_version: its content hash.
        base: the base model that did the work; None where none did (a floor).
        key: a name for who asked. Never the key itself.
        usage: tokens.
        seconds: a `Seconds`, an answer's `Latency`, or a mapping with any of queue, prefill, decode, compute.
        usd: what it cost (`settings.usd(seconds.compute)` on a machine of one's own).
        detail: anything else worth keeping, as JSON.
    """

    kind: Kind
    skin: str | None = None
    skin_version: str | None = None
    base: Identity | None = None
    key: str | None = None
    usage: Usage = field(default_factory=Usage)
    seconds: Seconds | Latency | Mapping[str, float] = field(default_factory=Seconds)
    usd: float = 0.0
    detail: Mapping[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=new_id)
    at: float = field(default_factory=time.time)

    def row(self) -> dict[str, Any]:
        """The line as the table keeps it."""
        seconds = self.seconds
        if isinstance(seconds, Latency):
            seconds = Seconds.of(seconds)
        elif isinstance(seconds, Mapping):
            seconds = Seconds(**seconds)
        return {
            "id": self.id,
            "at": self.at,
            "day": datetime.fromtimestamp(self.at, UTC).date().isoformat(),
            "kind": self.kind,
            "skin": self.skin,
            "skin_version": self.skin_version,
            "base": self.base.name if self.base else None,
            "base_hash": self.base.hash if self.base else None,
            "key": self.key,
            "prompt_tokens": self.usage.prompt_tokens,
            "cached_tokens": self.usage.cached_tokens,
            "completion_tokens": self.usage.completion_tokens,
            **{f"{name}_seconds": value for name, value in asdict(seconds).items()},
            "usd": self.usd,
            "detail": dict(self.detail),
        }


class Ledger:
    """The lines of one database. Safe to use from several threads: they take turns at one connection."""

    def __init__(self, url: str, *, wait: float = 30.0) -> None:
        """Opens the ledger at an SQLAlchemy `url`, making it if there is none.

        Args:
            wait: seconds to wait for another program that holds the ledger.

        Raises:
            PandoError: the URL is wrong, its driver is missing, or the database cannot be opened, is damaged,
                locked, or not a ledger.
            FormatVersionError: a newer Pando made it.
        """
        self._engine = _connect(url, wait)
        self._name = self._engine.url.database or url
        if self._engine.dialect.name != "sqlite":
            self._name = self._engine.url.render_as_string(hide_password=True)
        self._wait = wait
        with self._explained():
            self._prepare()

    def record(self, kind: Kind, **fields: Any) -> str:
        """Writes one line and returns its id; the fields are those of `Line`. It is on disk when this returns.

        Raises:
            PandoError: the ledger cannot be written.
        """
        line = Line(kind=kind, **fields)
        self.write([line])
        return line.id

    def write(self, lines: Sequence[Line]) -> None:
        """Writes several lines in one transaction: all or, with a `PandoError`, none."""
        with self._explained(), self._engine.begin() as connection:
            connection.execute(_lines.insert(), [line.row() for line in lines])

    def lines(self, last: int | None = None) -> list[dict[str, Any]]:
        """The newest `last` lines (all by default), oldest first, with the columns of the table."""
        query = sa.select(_lines).order_by(_lines.c.at.desc(), _lines.c.id.desc()).limit(last)
        return self._read(query)[::-1]

    def summary(self, by: By, last: int | None = None) -> list[dict[str, Any]]:
        """Sums over the newest `last` lines (all by default), one dict per group, by what was spent.

        Each has the group's name under `by` (and `skin_version` for skins; the base's name where there is no
        skin), `lines`, and the sums of tokens, seconds and money.
        """
        lines = sa.select(_lines).order_by(_lines.c.at.desc(), _lines.c.id.desc()).limit(last).subquery()
        name: sa.ColumnElement[Any] = sa.func.coalesce(lines.c.skin, lines.c.base) if by == "skin" else lines.c[by]
        keys = [name.label(by)] + ([lines.c.skin_version] if by == "skin" else [])
        # PostgreSQL adds integers up to decimals
        sums = [sa.cast(sa.func.sum(lines.c[column]), lines.c[column].type).label(column) for column in SUMS]
        groups = [name] + ([lines.c.skin_version] if by == "skin" else [])
        order = name if by == "day" else sa.func.sum(lines.c.usd).desc()
        return self._read(sa.select(*keys, sa.func.count().label("lines"), *sums).group_by(*groups).order_by(order))

    def openings(self, test_hash: str) -> list[dict[str, Any]]:
        """The times that a test split was opened, oldest first: lines of kind "test_opening" whose
        `detail["test_hash"]` is this one."""
        found = sa.and_(_lines.c.kind == "test_opening", _lines.c.detail["test_hash"].as_string() == test_hash)
        return self._read(sa.select(_lines).where(found).order_by(_lines.c.at, _lines.c.id))

    def close(self) -> None:
        """Gives the connection back. Everything recorded is on disk already."""
        self._engine.dispose()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, query: sa.Select[Any]) -> list[dict[str, Any]]:
        with self._explained(), self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def _prepare(self) -> None:
        with self._engine.begin() as connection:
            for table in _meta.sorted_tables:
                connection.execute(sa.schema.CreateTable(table, if_not_exists=True))
                for index in table.indexes:
                    connection.execute(sa.schema.CreateIndex(index, if_not_exists=True))
            found = connection.scalar(sa.select(sa.func.max(_schema.c.format_version)))
        if found is None:
            # another process may be doing the same at this moment
            with contextlib.suppress(IntegrityError), self._engine.begin() as connection:
                connection.execute(_schema.insert().values(format_version=FORMAT_VERSION))
        else:
            check_format(f"the ledger {self._name}", found, FORMAT_VERSION)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise PandoError(_explanation(self._name, str(error.orig or error), self._wait)) from error


def open_ledger() -> Ledger:
    """The ledger that the settings name (`PANDO_LEDGER`, else a file in `$PANDO_HOME`)."""
    return Ledger(load_settings().ledger_url)


def _connect(url: str, wait: float) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
        sqlite = parsed.get_backend_name() == "sqlite"
        if sqlite and parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(
            parsed,
            poolclass=sa.QueuePool,
            pool_size=1,  # threads take turns at it
            max_overflow=0,
            pool_timeout=None,
            pool_pre_ping=not sqlite,
            connect_args={"timeout": wait, "check_same_thread": False} if sqlite else {},
        )
    except (ArgumentError, NoSuchModuleError) as error:
        raise PandoError(f"the ledger's URL is not one (set PANDO_LEDGER): {error}") from error
    except ImportError as error:
        mend = "install pando-fm[postgres]" if url.startswith("postgres") else f"install {error.name}"
        raise PandoError(f"the ledger's database driver is missing ({error.name}): {mend}") from error
    except OSError as error:
        raise PandoError(f"the ledger's folder {error.filename} cannot be made: {error.strerror}") from error
    if sqlite:
        sa.event.listen(engine, "connect", _sqlite_modes)
    return engine


def _sqlite_modes(connection: Any, _: Any) -> None:
    # readers never wait for the writer, and a committed line survives even a power cut
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _explanation(name: str, error: str, wait: float) -> str:
    if "locked" in error:
        return f"the ledger {name} is locked by another program since {wait:g} s: end that, or set PANDO_LEDGER"
    if "not a database" in error or "malformed" in error:
        return f"the ledger {name} is damaged ({error}): restore it or move it away, and a new one is made"
    if "full" in error:
        return f"the ledger {name} cannot be written, the disk is full: make room"
    if "readonly" in error or "unable to open" in error:
        return f"the ledger {name} cannot be opened ({error}): check its path and mode, or set PANDO_LEDGER"
    return f"the ledger {name}: {error}"
