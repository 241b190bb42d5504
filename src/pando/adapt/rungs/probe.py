"""Probe: logistic regression on the base's hidden states (classify).

Which states are read (layer; the input alone or within its prompt, with or without demonstrations before it) is chosen
on training rows by leave-one-out, the strength of the regression by cross-validation. Each call is one forward pass
without the output head; demonstrations are computed once for all calls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from pando.adapt.rungs.common import demonstration, draft, kept
from pando.adapt.rungs.few import draw
from pando.adapt.rungs.fitting import classes_of, cross_validate, fit_linear, left_out_error
from pando.adapt.rungs.tokens import call_tokens, shots_that_fit
from pando.errors import ContextLengthError, DataError
from pando.interface import Capabilities, Features, Handle, LanguageModel
from pando.skin import Skin
from pando.skin.linear import Linear
from pando.skin.parts import Reading
from pando.task.file import Task
from pando.task.rows import Example

if TYPE_CHECKING:
    from pando.adapt.lab import Lab

LAYERS = 10  # tried, evenly from a third of the depth to its end
SHOTS = (8, 4, 2)  # demonstrations before a prompt: as many as fit
DRAWS = 2  # of them
SCREENED = 256  # rows that contexts are compared on, and so many for each label:
SCREENED_EACH = 5
FINALISTS = 3  # layers of the best context that go on to all rows
STRENGTHS = (0.003, 0.01, 0.03, 0.1)  # C of the regression on standardised states
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
        """Some rows in every context, all of them in the best one, then development rows."""
        screened = min(len(lab.train), _screened(lab)) * (2 + DRAWS)
        return call_tokens(task, lab) * (screened + len(lab.train) + 2 * len(lab.select))

    def propose(self, task: Task, lab: Lab) -> list[Skin]:
        """One skin: the states and strength under which held-out training labels are likeliest.

        Raises:
            DataError: the rows that fit the base's context have fewer than two labels.
        """
        drafts = _drafts(task, lab)
        shown = {tuple(d.inputs.items()) for skin in drafts for d in skin.demonstrations}
        rows = [row for row in lab.train if tuple(row.inputs.items()) not in shown]
        some = rows[: _screened(lab)]
        with lab.progress(len(drafts) * len(some) + len(rows), "probe: hidden states") as advance:
            screened = [_states(skin, some, lab, advance) for skin in drafts]
            best = _best(drafts, screened, some, lab)
            states = _states(best, rows, lab, advance)
        fit = np.isfinite(states[:, 0, 0])
        lab.unread(row for row, there in zip(rows, fit, strict=True) if not there)
        y = classes_of(rows, lab.labels)[fit]
        if len(np.unique(y)) < 2:
            raise DataError(f"too few training rows fit the base's {lab.model.context_length} tokens of context")
        return [_fitted(best, states[fit], y, lab.seed)]


def _drafts(task: Task, lab: Lab) -> list[Skin]:
    """A skin for each context, reading every layer that is tried."""
    bare = draft(task, lab, "probe", method="probe")
    depth = lab.model.capabilities.layers
    layers = tuple(sorted({round(depth * (1 - 2 / 3 * i / LAYERS)) for i in range(LAYERS)}))
    alone, prompted = Reading(layers, "mean"), Reading(layers, "both", prompted=True)
    drafts = [replace(bare, reading=alone), replace(bare, reading=prompted)]
    count = Counter(str(row.output) for row in lab.train)
    plenty = [row for row in lab.train if count[str(row.output)] > 2]  # what is shown is not learnt from
    random = np.random.default_rng(lab.seed)
    if not (plenty and lab.model.capabilities.demonstrations):
        return drafts
    for shots in shots_that_fit(bare, lab, SHOTS)[:1]:
        for _ in range(DRAWS):
            shown = tuple(map(demonstration, draw(plenty, shots, random, task)))
            drafts.append(replace(bare, reading=prompted, demonstrations=shown))
    return drafts


def _screened(lab: Lab) -> int:
    return max(SCREENED, SCREENED_EACH * len(lab.labels))


def _best(drafts: Sequence[Skin], states: Sequence[np.ndarray], rows: Sequence[Example], lab: Lab) -> Skin:
    """The draft with the layer that tells the labels of rows left out best, reading its best layers only."""
    fit = np.all([np.isfinite(every[:, 0, 0]) for every in states], axis=0)
    y = classes_of(rows, lab.labels)[fit]
    if len(y) == 0:
        raise DataError(f"no training row fits the base's {lab.model.context_length} tokens of context")
    errors = [[left_out_error(_standardised(every[fit, i])[0], y) for i in range(every.shape[1])] for every in states]
    skin, error = min(zip(drafts, errors, strict=True), key=lambda pair: min(pair[1]))
    assert skin.reading is not None
    layers = [skin.reading.layers[i] for i in np.argsort(error, kind="stable")[:FINALISTS]]
    return replace(skin, reading=replace(skin.reading, layers=tuple(layers)))


def _fitted(skin: Skin, states: np.ndarray, y: np.ndarray, seed: int) -> Skin:
    """The skin with the best of its layers and the regression on it; `states` are [rows, layers, d]."""
    assert skin.reading is not None
    options = []
    for i, layer in enumerate(skin.reading.layers):
        said = cross_validate(_standardised(states[:, i])[0], y, STRENGTHS, seed)[:, 0]
        options.append((float(said.max()), i, layer, STRENGTHS[int(said.argmax())]))
    _, i, layer, strength = max(options)
    x, mean, scale = _standardised(states[:, i])
    linear = fit_linear(x, y, len(skin.labels), strength)
    weight = (linear.weight / scale).astype(np.float32)
    return replace(
        skin,
        reading=replace(skin.reading, layers=(layer,)),
        linear=Linear(weight, linear.bias, mean.astype(np.float32)),
    )


def _standardised(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns of mean 0 and deviation 1, with their means and deviations; float64."""
    mean, scale = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    scale = np.where(scale > 0, scale, 1.0)
    return (x - mean) / scale, mean, scale


def _states(skin: Skin, rows: Sequence[Example], lab: Lab, advance: Callable[[int], None]) -> np.ndarray:
    """What the skin reads of each row, float32 [rows, layers, d]; not a number for rows beyond the base's context.

    It is kept in the rung's folder, for a run that goes on.
    """
    folder, parts = lab.workdir("probe"), []
    assert skin.reading is not None
    for start in range(0, len(rows), _BATCH):
        part = rows[start : start + _BATCH]
        path = folder / f"{skin.version[7:19]}-{start}-{len(part)}.npy"
        parts.append(kept(path, lab, len(skin.reading.layers), partial(_ask, skin, part, lab.model)))
        advance(len(part))
    width = max(part.shape[2] for part in parts)  # 1 where no row of a part fits
    return np.concatenate([np.broadcast_to(part, (*part.shape[:2], width)) for part in parts])


def _ask(skin: Skin, rows: Sequence[Example], model: LanguageModel) -> list[Features | None]:
    """The states of each row; None where it does not fit."""
    handles: list[Handle | None] = []
    for row in rows:
        try:
            (request,) = skin.ask(model, row)
            handles.append(model.submit(request))
        except ContextLengthError:
            handles.append(None)
    return [handle.result() if handle else None for handle in handles]
