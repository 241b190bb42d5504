"""Where things live and what the machine costs: environment variables first, then `$PANDO_HOME/settings.yaml`.

| setting               | variable              | default                           |
|-----------------------|-----------------------|-----------------------------------|
| home                  | PANDO_HOME            | ~/.cache/pando                    |
| machine_usd_per_hour  | PANDO_MACHINE_USD     | 0.10 (a 2-core cloud machine)     |
| ledger_url            | PANDO_LEDGER          | sqlite file in home               |
| threads               | PANDO_THREADS         | all cores torch sees              |
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pando.errors import PandoError

_VARIABLES = {
    "machine_usd_per_hour": "PANDO_MACHINE_USD",
    "ledger_url": "PANDO_LEDGER",
    "threads": "PANDO_THREADS",
}
_TYPES: dict[str, type] = {"machine_usd_per_hour": float, "ledger_url": str, "threads": int}


@dataclass(frozen=True)
class Settings:
    """Resolved settings.

    Attributes:
        home: folder of base models, the ledger and `settings.yaml`.
        machine_usd_per_hour: price of this machine, in US dollars an hour; turns measured seconds into money.
        ledger_url: SQLAlchemy URL of the ledger.
        threads: compute threads; 0 leaves torch's default.
    """

    home: Path
    machine_usd_per_hour: float = 0.10
    ledger_url: str = ""
    threads: int = 0

    @property
    def bases(self) -> Path:
        """The folder of pulled base models."""
        return self.home / "bases"

    def usd(self, seconds: float) -> float:
        """Price of `seconds` of this machine, in US dollars."""
        return seconds * self.machine_usd_per_hour / 3600


def load_settings() -> Settings:
    """Reads the settings anew, so that tests and long processes see the present ones.

    Raises:
        PandoError: `settings.yaml` has an unknown key or a value of the wrong type.
    """
    home = Path(os.environ.get("PANDO_HOME") or "~/.cache/pando").expanduser().absolute()
    values: dict[str, Any] = _read_file(home / "settings.yaml")
    for name, variable in _VARIABLES.items():
        if os.environ.get(variable):
            values[name] = _typed(name, os.environ[variable], f"environment variable {variable}")
    values.setdefault("ledger_url", f"sqlite:///{home / 'ledger.sqlite'}")
    return Settings(home=home, **values)


def _read_file(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PandoError(f"{path} is not valid YAML: {error}") from None
    known = {f.name for f in fields(Settings)} - {"home"}
    if not isinstance(found, dict) or set(found) - known:
        wrong = sorted(map(str, set(found) - known)) if isinstance(found, dict) else [type(found).__name__]
        raise PandoError(f"{path}: unknown setting {', '.join(wrong)}; known are {', '.join(sorted(known))}")
    return {name: _typed(name, value, str(path)) for name, value in found.items()}


def _typed(name: str, value: Any, where: str) -> Any:
    try:
        typed = _TYPES[name](value)
    except (TypeError, ValueError):
        raise PandoError(f"{where}: {name} must be a {_TYPES[name].__name__}, not {value!r}") from None
    if isinstance(typed, (int, float)) and typed < 0:
        raise PandoError(f"{where}: {name} must not be negative")
    return typed
