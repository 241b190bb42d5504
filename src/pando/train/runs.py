"""Runs on disk, read for whoever wants to look at them: what they were made for and what happened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pando.errors import PandoError
from pando.train.configfile import read_config
from pando.train.log import NAME, losses, read_log
from pando.train.record import RUN, read_run


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        config: values by dotted field.
        steps: of the whole run; `made`: so far. seconds: of the steps so far.
        loss: (step, nats a target). bits: (step, bits per byte held back).
        sources: bits per byte of each source, of the last validation.
        skipped: steps that were skipped.
        speed: tokens a second, the median over steps.
        samples: texts of the last sampling. scores: of the last evaluation.
    """

    folder: str
    config: dict[str, Any]
    corpus: str
    made: int
    finished: bool
    seconds: float
    speed: float | None
    loss: list[tuple[int, float]]
    bits: list[tuple[int, float]]
    sources: dict[str, float]
    skipped: int
    samples: list[str]
    scores: dict[str, float]
    forecast: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Reads runs.

    Raises:
        PandoError: a folder holds no run, or a damaged one.
    """
    return [_read(folder) for folder in folders]


def _read(folder: Path) -> Run:
    run = read_run(folder)
    if not run:
        raise PandoError(f"{folder} holds no run ({RUN} is missing): name what `pando pretrain --out` wrote")
    records = read_log(folder / NAME)
    steps = [one for one in records if one["kind"] == "step"]
    checks = [one for one in records if one["kind"] == "validation"]
    samples, scores = (_last(records, kind) for kind in ("sample", "evaluation"))
    taken = sorted(one["slots"] / one["seconds"] for one in steps if one["seconds"] > 0)
    return Run(
        folder=str(folder),
        config=read_config(folder / "config.yaml").values,
        corpus=run["corpus"],
        made=1 + max((one["step"] for one in steps), default=-1),
        finished=any(one["kind"] == "end" for one in records),
        seconds=sum(one["seconds"] for one in steps),
        speed=taken[len(taken) // 2] if taken else None,
        loss=list(losses(records)),
        bits=[(one["step"], one["bits_per_byte"]) for one in checks if one["bits_per_byte"] is not None],
        sources=checks[-1]["sources"] if checks else {},
        skipped=sum(not one["kept"] for one in steps),
        samples=samples.get("texts", []),
        scores=scores.get("scores", {}),
        forecast=run.get("forecast", {}),
    )


def _last(records: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next((one for one in reversed(records) if one["kind"] == kind), {})
