"""Objectives by name, and mixtures of them.

An objective is added by writing its file and naming it in OBJECTIVES.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pando.errors import PandoError
from pando.files import content_hash
from pando.train.example import Example, Objective, parted
from pando.train.objectives.causal import Causal
from pando.train.objectives.fim import Fim
from pando.train.objectives.masked import Masked
from pando.train.objectives.span import Span
from pando.train.objectives.supervised import Supervised

if TYPE_CHECKING:
    from pando.train.shards import Shards

OBJECTIVES: dict[str, type[Any]] = {kind.name: kind for kind in (Causal, Masked, Span, Fim, Supervised)}


@dataclass(frozen=True)
class Part:
    """One objective of a mixture.

    Attributes:
        objective: what documents become.
        weight: its share of the documents that it may take, against the other parts'.
        sources: numbers of the sources whose documents it may take; None: any.
    """

    objective: Objective
    weight: float
    sources: frozenset[int] | None = None


class Mixture:
    """Objectives with weights: each document is drawn for one of those that take its source.

    Attributes:
        parts: the objectives.
        fingerprint: names all that bears on what is drawn.
        start: what the decoder begins with where an encoder reads the prefixes; None: one stack does both.
    """

    def __init__(self, parts: Sequence[Part], fingerprint: str, start: int | None = None) -> None:
        self.parts, self.fingerprint, self.start = tuple(parts), fingerprint, start
        self._draws: dict[int, tuple[list[int], np.ndarray]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the objectives, in the order of `Batch.objective`."""
        return tuple(part.objective.name for part in self.parts)

    def examples(
        self, which: int, tokens: NDArray[np.int32], room: int, rng: np.random.Generator | None
    ) -> list[Example]:
        """What a part makes of a document; see `Objective.examples`."""
        objective = self.parts[which].objective
        if self.start is None:
            return objective.examples(tokens, room, rng)
        return [parted(example, self.start, room) for example in objective.examples(tokens, room - 1, rng)]

    def candidates(self, source: int) -> tuple[list[int], np.ndarray]:
        """Which parts may take a document of this source, and their cumulative shares."""
        if source not in self._draws:
            fit = [i for i, part in enumerate(self.parts) if part.sources is None or source in part.sources]
            weights = np.array([self.parts[i].weight for i in fit])
            self._draws[source] = (fit, weights.cumsum() / weights.sum())
        return self._draws[source]


def make_mixture(
    settings: Mapping[str, float | Mapping[str, Any]],
    shards: Shards,
    start: int | None = None,
    begin: int | None = None,
) -> Mixture:
    """The mixture that a config describes.

    Args:
        settings: objective -> weight, or -> {"weight": ..., "sources": [names], and options of the objective}.
        shards: the corpus, for its tokenizer, end token and sources.
        start: see `Mixture`.
        begin: what documents are read after by objectives that go from left to right; None: the end token.

    Raises:
        PandoError: no such objective, option or source, a weight that is not above 0, or a special token that is
            missing; names it.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(shards.tokenizer_file))
    if not settings:
        raise PandoError("objectives: name at least one, such as causal: 1")
    plain = {name: dict(one) if isinstance(one, Mapping) else {"weight": one} for name, one in settings.items()}
    parts = [_part(name, dict(options), tokenizer, shards, begin) for name, options in plain.items()]
    for i, source in enumerate(shards.sources):
        if source.tokens and not any(part.sources is None or i in part.sources for part in parts):
            raise PandoError(f"objectives: none takes the source {source.name}; give one without `sources`")
    return Mixture(parts, content_hash([shards.hash, list(plain.items())]), start)


def _part(name: str, options: dict[str, Any], tokenizer: Any, shards: Shards, begin: int | None) -> Part:
    if name not in OBJECTIVES:
        raise PandoError(f"objectives: {name!r} is unknown; there are {', '.join(OBJECTIVES)}")
    kind = OBJECTIVES[name]
    weight = options.pop("weight", 1.0)
    if type(weight) not in (int, float) or not 0 < weight < float("inf"):
        raise PandoError(f"objectives.{name}: weight is {weight!r}; expected a number above 0")
    sources = _sources(name, options.pop("sources", None), shards)
    asked = inspect.signature(kind).parameters
    known = [p for p in asked if p not in ("tokenizer", "end", "begin")]
    for unknown in options.keys() - set(known):
        raise PandoError(
            f"objectives.{name}: no option {unknown!r}; there are {', '.join(['weight', 'sources', *known])}"
        )
    if missing := kind.needs(tokenizer):
        some = ", ".join(missing[:4]) + (", ..." if len(missing) > 4 else "")
        raise PandoError(
            f"objectives.{name} needs the special token{'s' if len(missing) > 1 else ''} {some}, which "
            f"{Path(shards.folder, 'tokenizer.json')} lacks; train one with: pando tokenizer train"
        )
    if "begin" in asked:
        options["begin"] = begin
    return Part(kind(tokenizer, shards.end, **options), float(weight), sources)


def _sources(name: str, given: Any, shards: Shards) -> frozenset[int] | None:
    if given is None:
        return None
    known = {source.name: i for i, source in enumerate(shards.sources)}
    named = isinstance(given, list) and all(isinstance(one, str) for one in given)
    wrong = [one for one in given if one not in known] if named else [given]
    if wrong or not given:
        raise PandoError(f"objectives.{name}: sources {wrong!r} are none of the corpus; there are {', '.join(known)}")
    return frozenset(known[one] for one in given)
