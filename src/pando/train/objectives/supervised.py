"""The supervised objective: learn answers only, in conversations that the corpus holds as documents.

It is the objective of the LoRA rung (pando.train.supervised), whose examples `answered` packs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pando.errors import DataError
from pando.model.spelling import Spelling
from pando.train.example import IGNORE, Example
from pando.train.objectives.causal import shifted
from pando.train.supervised import SupervisedExample

if TYPE_CHECKING:
    from tokenizers import Tokenizer

START, STOP = MARKS = ("<|im_start|>", "<|im_end|>")
_ROLE = b"assistant"


class Supervised:
    """Next-token prediction of what the assistant says in ChatML documents, the token that ends its turn included."""

    name = "supervised"
    random = False

    def __init__(self, tokenizer: Tokenizer, end: int, begin: int | None = None) -> None:
        self._begin = end if begin is None else begin
        self._start, self._stop = (tokenizer.token_to_id(mark) for mark in MARKS)
        self._spelled = Spelling(tokenizer)(range(tokenizer.get_vocab_size()))

    @staticmethod
    def needs(tokenizer: Tokenizer) -> Sequence[str]:
        return [mark for mark in MARKS if tokenizer.token_to_id(mark) is None]

    def examples(self, tokens: NDArray[np.int32], room: int, rng: np.random.Generator | None) -> list[Example]:
        """One example.

        Raises:
            DataError: there is no answer in the document.
        """
        learnt = np.zeros(len(tokens), bool)
        stops = np.flatnonzero(tokens == self._stop)
        for start in np.flatnonzero(tokens == self._start).tolist():
            begins = self._answer(tokens, start)
            if begins is not None:
                after = stops[stops >= begins]
                learnt[begins : after[0] + 1 if len(after) else len(tokens)] = True
        if not learnt.any():
            raise DataError(
                f"objectives.supervised: a document of {len(tokens)} tokens has no turn of the assistant "
                f"({START}assistant); name the sources that are conversations under `sources`"
            )
        made = shifted(tokens, self._begin)
        return [made._replace(targets=np.where(learnt, tokens, IGNORE).astype(np.int32))]

    def _answer(self, tokens: NDArray[np.int32], start: int) -> int | None:
        """Where the answer begins if the turn at `start` is the assistant's: after the line that says so."""
        head = b""
        for place in range(start + 1, min(start + 12, len(tokens))):
            head += self._spelled[tokens[place]]
            if b"\n" in head:
                return place + 1 if head.split(b"\n")[0].strip() == _ROLE else None
        return None


def answered(example: SupervisedExample) -> Example:
    """A prompt and its answer as an example to pack; the last token is only a target."""
    tokens = np.array([*example.prompt, *example.answer], np.int32)
    targets = tokens[1:].copy()
    targets[: len(example.prompt) - 1] = IGNORE
    return Example(tokens[:-1], targets)
