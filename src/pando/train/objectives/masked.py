"""The masked objective: predict hidden tokens from both sides (BERT, arXiv 1810.04805)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pando.errors import PandoError
from pando.model.spelling import Spelling
from pando.model.tokenizer import MASK, MASKS
from pando.train.example import IGNORE, Example

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_HIDDEN, _RANDOM = 0.8, 0.1  # of the chosen tokens; the others stay as they are


class Masked:
    """Some tokens of a document are chosen and are to be told at their own places, by a model that sees both ways.

    Args:
        tokenizer, end: as for every objective. The end token is never chosen.
        rate: share of the tokens that are chosen.
        whole_words: choose words, all tokens of each, instead of tokens (whole-word masking, as BERT's authors added
            it in 2019).
    """

    name = "masked"
    random = True

    def __init__(self, tokenizer: Tokenizer, end: int, *, rate: float = 0.15, whole_words: bool = False) -> None:
        if type(rate) is not float or not 0 < rate < 1:
            raise PandoError(f"objectives.masked: rate is {rate!r}; expected a share between 0 and 1")
        if type(whole_words) is not bool:
            raise PandoError(f"objectives.masked: whole_words is {whole_words!r}; expected true or false")
        self._end, self._rate = end, rate
        self._mask = next(filter(None, map(tokenizer.token_to_id, MASKS)), 0)
        specials = tokenizer.get_added_tokens_decoder()
        self._ordinary = np.array([i for i in range(tokenizer.get_vocab_size()) if i not in specials], np.int32)
        self._words = _Words(tokenizer) if whole_words else None

    @staticmethod
    def needs(tokenizer: Tokenizer) -> Sequence[str]:
        return [MASK] if all(tokenizer.token_to_id(one) is None for one in MASKS) else []

    def examples(self, tokens: NDArray[np.int32], room: int, rng: np.random.Generator | None) -> list[Example]:
        assert rng is not None
        targets = np.full_like(tokens, IGNORE)
        read = tokens.copy()
        chosen = self._choose(tokens, rng)
        targets[chosen] = tokens[chosen]
        kind = rng.random(len(chosen))
        read[chosen[kind < _HIDDEN]] = self._mask
        random = chosen[(kind >= _HIDDEN) & (kind < _HIDDEN + _RANDOM)]
        read[random] = rng.choice(self._ordinary, len(random))
        return [Example(read, targets, prefix=len(tokens), cuttable=True)]

    def _choose(self, tokens: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.int64]:
        """Places of about `rate` of the tokens, at least one."""
        free = len(tokens) - (tokens[-1] == self._end)
        count = max(1, round(self._rate * free))
        if self._words is None or not free:
            return rng.permutation(free)[:count]
        word = self._words.numbers(tokens[:free])
        order = rng.permutation(word[-1] + 1)
        sizes = np.bincount(word)[order]
        taken = order[sizes.cumsum() - sizes < count]  # the word that reaches the count is taken whole
        return np.flatnonzero(np.isin(word, taken))


class _Words:
    """Which tokens make a word: letters, digits and what is not ASCII; all else stands alone or begins one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        spelled = Spelling(tokenizer)(range(tokenizer.get_vocab_size()))
        specials = tokenizer.get_added_tokens_decoder()
        joins = [i not in specials and bool(text) and _inside(text[0]) for i, text in enumerate(spelled)]
        goes_on = [i not in specials and bool(text) and _inside(text[-1]) for i, text in enumerate(spelled)]
        self._joins, self._goes_on = np.array(joins), np.array(goes_on)

    def numbers(self, tokens: NDArray[np.int32]) -> NDArray[np.int64]:
        """Number of the word that each token belongs to."""
        begins = np.ones(len(tokens), bool)
        begins[1:] = ~(self._joins[tokens[1:]] & self._goes_on[tokens[:-1]])
        return begins.cumsum() - 1


def _inside(byte: int) -> bool:
    return byte >= 0x80 or chr(byte).isalnum()
