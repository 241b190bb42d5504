"""The causal objective: predict each token from those before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pando.train.example import Example

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Causal:
    """Next-token prediction. A document is read after the end token of an imagined one before it, so that its first
    token is learnt too and every token of the corpus is a target exactly once.

    Args:
        tokenizer, end: as for every objective.
        begin: what documents are read after in place of the end token.
    """

    name = "causal"
    random = False

    def __init__(self, tokenizer: Tokenizer, end: int, begin: int | None = None) -> None:
        self._begin = end if begin is None else begin

    @staticmethod
    def needs(tokenizer: Tokenizer) -> Sequence[str]:
        return ()

    def examples(self, tokens: NDArray[np.int32], room: int, rng: np.random.Generator | None) -> list[Example]:
        return [shifted(tokens, self._begin)]


def shifted(tokens: NDArray[np.int32], begin: int) -> Example:
    """Tokens [n] as targets, each read one place before; what is cut off it goes on from the last token before."""
    read = np.empty_like(tokens)
    read[0] = begin
    read[1:] = tokens[:-1]
    return Example(read, tokens, cuttable=True)
