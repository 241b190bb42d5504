"""The span objective: spans of tokens are cut out and written down after the rest (T5, arXiv 1910.10683, part 3.1.4).

An encoder-decoder reads the rest and writes the spans. Where one stack does both, it does so as a prefix language
model: what is read sees itself both ways, what is written sees all that was read and its own past.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pando.errors import PandoError
from pando.model.tokenizer import SENTINEL, SENTINELS
from pando.train.example import IGNORE, Example

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MOST = 1000


class Span:
    """Span corruption. `a b c d e end` becomes `a S0 d e end | S0 b c`, which is to be continued as `S0 b c end`.

    Args:
        tokenizer, end: as for every objective.
        rate: share of the tokens that is cut out.
        mean_length: of a span, in tokens. Spans are longer where there are fewer sentinels than that would need, and
            where their marks would not fit into the row with a document that does.
    """

    name = "span"
    random = True

    def __init__(self, tokenizer: Tokenizer, end: int, *, rate: float = 0.15, mean_length: float = 3.0) -> None:
        if type(rate) is not float or not 0 < rate < 1:
            raise PandoError(f"objectives.span: rate is {rate!r}; expected a share between 0 and 1")
        if type(mean_length) not in (int, float) or not 1 <= mean_length < math.inf:
            raise PandoError(f"objectives.span: mean_length is {mean_length!r}; expected at least 1 token")
        self._end, self._rate, self._mean = end, rate, mean_length
        form = next((one for one in SENTINELS if tokenizer.token_to_id(one.format(0)) is not None), SENTINEL)
        ids = (tokenizer.token_to_id(form.format(i)) for i in range(_MOST))
        self._sentinels = np.array([i for i in ids if i is not None], np.int32)

    @staticmethod
    def needs(tokenizer: Tokenizer) -> Sequence[str]:
        known = any(tokenizer.token_to_id(one.format(0)) is not None for one in SENTINELS)
        return [] if known else [SENTINEL.format(0)]

    def examples(self, tokens: NDArray[np.int32], room: int, rng: np.random.Generator | None) -> list[Example]:
        assert rng is not None
        body, found = tokens[:-1], []
        spans = self._spans(room)
        while spans > self._spans(room - 1 - 2 * spans):
            spans -= 1
        full = room - 1 - 2 * spans  # so many tokens with so many spans fill a row
        while len(body) + 3 > room:
            found.append(self._corrupted(body[:full], spans, rng))
            body = body[full:]
        fewer = (room - 1 - len(body)) // 2
        return [*found, self._corrupted(body, min(self._spans(len(body)), fewer), rng)]

    def _noise(self, size: int) -> int:
        """Tokens that are cut out of `size`."""
        return min(max(1, round(size * self._rate)), size)

    def _spans(self, size: int) -> int:
        """In how many spans."""
        noise = self._noise(size)
        return max(0, min(max(1, round(noise / self._mean)), noise, size - noise + 1, len(self._sentinels)))

    def _corrupted(self, body: NDArray[np.int32], spans: int, rng: np.random.Generator) -> Example:
        """The example of len(body) + 2 * spans + 1 tokens."""
        noise = self._noise(len(body))
        kept_sizes = _partition(len(body) - noise + 2, spans + 1, rng)
        kept_sizes[[0, -1]] -= 1  # only the first and the last stretch that is kept may be empty
        cut_sizes = _partition(noise, spans, rng)
        read, written, at = [], [], 0
        for i in range(spans):
            cut = at + kept_sizes[i]
            read += [body[at:cut], self._sentinels[i : i + 1]]
            at = cut + cut_sizes[i]
            written += [self._sentinels[i : i + 1], body[cut:at]]
        end = np.array([self._end], np.int32)
        seen = np.concatenate([*read, body[at:], end])
        wanted = np.concatenate([*written, end])
        ignored = np.full(len(seen) - 1, IGNORE, np.int32)
        return Example(np.concatenate([seen, wanted[:-1]]), np.concatenate([ignored, wanted]), prefix=len(seen))


def _partition(total: int, parts: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """`total` as a sum of `parts` whole numbers of at least 1, every such sum equally likely."""
    assert parts <= total
    if parts == 0:
        return np.zeros(0, np.int64)
    cuts = np.sort(rng.permutation(total - 1)[: parts - 1]) + 1
    return np.diff(cuts, prepend=0, append=total)
