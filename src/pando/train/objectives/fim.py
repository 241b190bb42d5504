"""The fill-in-the-middle objective, for code (arXiv 2207.14255)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pando.errors import PandoError
from pando.train.example import IGNORE, Example
from pando.train.objectives.causal import shifted

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PREFIX, MIDDLE, SUFFIX = MARKS = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")


class Fim:
    """Causal prediction of documents whose middle has been moved to the end, so that it is learnt from both sides.

    A document is cut in three at random. It becomes prefix, suffix, middle (PSM) or suffix, prefix, middle (SPM),
    marked as StarCoder's and Code Llama's are. Marks are read and never learnt: whoever asks for a middle writes them.

    Args:
        tokenizer, end: as for every objective.
        rate: share of the documents that are turned; the others are causal.
        spm: share of the turned ones whose suffix comes first.
    """

    name = "fim"
    random = True

    def __init__(
        self, tokenizer: Tokenizer, end: int, begin: int | None = None, *, rate: float = 0.5, spm: float = 0.5
    ) -> None:
        for what, value in (("rate", rate), ("spm", spm)):
            if type(value) not in (int, float) or not 0 <= value <= 1:
                raise PandoError(f"objectives.fim: {what} is {value!r}; expected a share from 0 to 1")
        self._end, self._rate, self._spm = end, rate, spm
        self._begin = end if begin is None else begin
        self._marks = {mark: np.array([tokenizer.token_to_id(mark)], np.int32) for mark in MARKS}

    @staticmethod
    def needs(tokenizer: Tokenizer) -> Sequence[str]:
        return [mark for mark in MARKS if tokenizer.token_to_id(mark) is None]

    def examples(self, tokens: NDArray[np.int32], room: int, rng: np.random.Generator | None) -> list[Example]:
        assert rng is not None
        fits = len(tokens) <= room < len(tokens) + len(MARKS)  # whole, but not with marks: it is not cut for them
        if rng.random() >= self._rate or fits or room <= len(MARKS) + 1:
            return [shifted(tokens, self._begin)]
        body, size = tokens[:-1], room - len(MARKS) - 1  # each part ends with an end token of its own
        return [self._turned(body[i : i + size], rng) for i in range(0, max(1, len(body)), size)]

    def _turned(self, body: NDArray[np.int32], rng: np.random.Generator) -> Example:
        first, second = np.sort(rng.integers(0, len(body) + 1, 2))
        prefix, middle, suffix = body[:first], body[first:second], body[second:]
        pre, mid, suf = self._marks[PREFIX], self._marks[MIDDLE], self._marks[SUFFIX]
        if rng.random() < self._spm:
            order = [pre, suf, suffix, mid, prefix, middle]
            marks = [0, 1, 2 + len(suffix)]
        else:
            order = [pre, prefix, suf, suffix, mid, middle]
            marks = [0, 1 + len(prefix), 2 + len(prefix) + len(suffix)]
        made = shifted(np.concatenate([*order, np.array([self._end], np.int32)]), self._begin)
        targets = made.targets.copy()
        targets[marks] = IGNORE
        return Example(made.tokens, targets)
