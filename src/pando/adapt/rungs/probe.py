"""Probe: logistic regression on the base's hidden states (classify).

Which states (layer; mean or last token; the input alone or within its prompt) and how strongly the regression is held
back is chosen by cross-validation on training rows. A call is one forward pass without the output head.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pando.adapt.rungs.common import draft
from pando.adapt.rungs.fitting import classes_of, cross_validate, fit_linear, left_out_error
from pando.adapt.rungs.tokens import call_tokens
from pando.errors import ContextLengthError, DataError
from pando.files import atomic_write
from pando.interface import Capabilities, Features, Handle, LanguageModel, Usage
from pando.skin import Skin
from pando.skin.linear import Linear
from pando.skin.parts import Reading
from pando.task.file import Task
from pando.task.rows import Example

if TYPE_CHECKING:
    from pando.adapt.lab import Lab

LAYERS = 8  # evenly over the last three quarters
FINALISTS = 3
STRENGTHS = (0.001, 0.01, 0.1)  # C of the regression on standardised states
_BATCH = 128  # rows whose states are computed and kept together


class Probe:
    """See `Rung`."""

    name = "probe"

    def fits(self, task: Task, capabilities: Capabilities) -> str | None:
        """Why it cannot be tried with this task and model, or None."""
        if task.kind != "classify":
            return "a probe tells labels apart; this task has none"
        return None if capabilities.features else "this model does not show its hidden states"

    def cost(self, task: Task, lab: Lab) -> float:
        """Every training row once in each reading, then development rows."""
        return call_tokens(task, lab) * (3 * len(lab.train) + 2 * len(lab.select))

    def propose(self, task: Task, lab: Lab) -> list[Skin]:
        """One skin: the states and strength under which held-out training labels are likeliest.

        Raises:
            DataError: no training row fits the base's context.
        """
        bare = draft(task, lab, self.name, method="probe")
        layers = _grid(lab.model.capabilities.layers)
        readings = (Reading(layers), Reading(layers, "last", prompted=True), Reading(layers, "mean", prompted=True))
        rows, states = _states([replace(bare, reading=reading) for reading in readings], lab)
        y = classes_of(rows, lab.labels)
        best, x, strength = _choose(readings, states, y, lab.seed)
        return [replace(bare, reading=best, linear=_fit(x, y, len(lab.labels), strength))]


def _grid(depth: int) -> tuple[int, ...]:
    """Layers to read: evenly over the last three quarters, the last one included."""
    return tuple(sorted({round(depth * (1 - 0.75 * i / LAYERS)) for i in range(LAYERS)}))


def _states(drafts: Sequence[Skin], lab: Lab) -> tuple[list[Example], list[np.ndarray]]:
    """Training rows that fit the base's context in every reading, and their states by draft, [rows, layers, d].

    What was computed is kept in the rung's folder, for a run that goes on.
    """
    folder, rows = lab.workdir("probe"), list(lab.train)
    with lab.progress(len(drafts) * len(rows), "probe: hidden states") as advance:
        found = []
        for skin in drafts:
            parts = []
            for start in range(0, len(rows), _BATCH):
                part = rows[start : start + _BATCH]
                parts.append(_kept(folder / f"{skin.version[7:19]}-{start}.npy", skin, part, lab))
                advance(len(part))
            found.append(np.concatenate(parts))
    fit = [i for i in range(len(rows)) if all(np.isfinite(states[i, 0, 0]) for states in found)]
    if len({str(rows[i].output) for i in fit}) < 2:
        raise DataError(f"too few training rows fit the base's {lab.model.context_length} tokens of context")
    return [rows[i] for i in fit], [states[fit] for states in found]


def _kept(path: Path, skin: Skin, rows: Sequence[Example], lab: Lab) -> np.ndarray:
    """The states of some rows: read if they are there, else computed, billed and written."""
    if path.exists():
        known: np.ndarray = np.load(path)
        return known
    start = time.perf_counter()
    answers = list(_ask(skin, rows, lab.model))
    lab.bill("build", time.perf_counter() - start, sum((a.usage for a in answers if a), Usage()))
    width = next((a.vectors.shape[1] for a in answers if a), 1)
    assert skin.reading is not None
    missing = np.full((len(skin.reading.layers), width), np.nan, dtype=np.float32)
    states = np.stack([a.vectors if a else missing for a in answers])
    file = io.BytesIO()
    np.save(file, states)
    atomic_write(path, file.getvalue())
    return states


def _ask(skin: Skin, rows: Sequence[Example], model: LanguageModel) -> Iterator[Features | None]:
    """The states of each row; None where it does not fit."""
    handles: list[Handle | None] = []
    for row in rows:
        try:
            (request,) = skin.ask(model, row)
            handles.append(model.submit(request))
        except ContextLengthError:
            handles.append(None)
    for handle in handles:
        yield handle.result() if handle else None


def _choose(
    readings: Sequence[Reading], states: Sequence[np.ndarray], y: np.ndarray, seed: int
) -> tuple[Reading, np.ndarray, float]:
    """The reading of one layer, its states [rows, d], and the strength."""
    options = []
    for reading, every in zip(readings, states, strict=True):
        for i, layer in enumerate(reading.layers):
            error = left_out_error(_standardised(every[:, i])[0], y)
            options.append((error, replace(reading, layers=(layer,)), every[:, i]))
    options.sort(key=lambda option: option[0])
    best: tuple[float, Reading, np.ndarray, float] | None = None
    for _, reading, x in options[:FINALISTS]:
        said = cross_validate(_standardised(x)[0], y, STRENGTHS, seed)[:, 0]
        i = int(said.argmax())
        if best is None or said[i] > best[0]:
            best = (float(said[i]), reading, x, STRENGTHS[i])
    assert best is not None
    return best[1:]


def _fit(x: np.ndarray, y: np.ndarray, classes: int, strength: float) -> Linear:
    """A regression on standardised states, whose scale moves into its weights."""
    standard, mean, scale = _standardised(x)
    linear = fit_linear(standard, y, classes, strength)
    return Linear((linear.weight / scale).astype(np.float32), linear.bias, mean.astype(np.float32))


def _standardised(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns of mean 0 and deviation 1, with their means and deviations; float64."""
    mean, scale = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    scale = np.where(scale > 0, scale, 1.0)
    return (x - mean) / scale, mean, scale
