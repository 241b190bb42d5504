"""What an objective makes of a document, and what an objective is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer

IGNORE = -100  # a target that is none; torch's own default


class Example(NamedTuple):
    """Tokens that belong together, with what is to be predicted from them.

    Attributes:
        tokens: int32 [n], what the model reads.
        targets: int32 [n], what each place predicts (for causal, the next token), or IGNORE.
        prefix: the first so many tokens see each other both ways; every other one sees what comes before it.
        cuttable: whether pieces of it are examples too. Only examples longer than a row are ever cut.
    """

    tokens: NDArray[np.int32]
    targets: NDArray[np.int32]
    prefix: int = 0
    cuttable: bool = False


def parted(example: Example, start: int, room: int) -> Example:
    """The example for a model with an encoder, one token longer: the encoder reads what stands before the first target,
    the decoder begins with `start` and writes the rest. What is longer than `room` (at least 2) loses the beginning of
    what is read, and where that is not enough the end of what is written."""
    first = int((example.targets != IGNORE).argmax())
    read, after = example.tokens[: first + 1], example.tokens[first + 1 :]
    read = read[-max(1, room - 1 - len(after)) :]
    after = after[: room - 1 - len(read)]
    tokens = np.concatenate((read, np.array([start], np.int32), after))
    written = example.targets[first : first + 1 + len(after)]
    return Example(tokens, np.concatenate((np.full(len(read), IGNORE, np.int32), written)), prefix=len(read))


class Objective(Protocol):
    """A self-supervised loss: which examples a document becomes. The loss of all is cross-entropy of the targets.

    A class is constructed with a tokenizer, the token that ends documents, and its own options by keyword.

    Attributes:
        name: what configs and logs call it.
        random: whether `examples` draws; otherwise `rng` may be None.
    """

    name: str
    random: bool

    @staticmethod
    def needs(tokenizer: Tokenizer) -> Sequence[str]:
        """Special tokens that it needs and the tokenizer lacks."""
        ...

    def examples(self, tokens: NDArray[np.int32], room: int, rng: np.random.Generator | None) -> list[Example]:
        """The examples of one document (int32 [n], its end token last), the same for the same state of `rng`.

        An example that cannot be cut has at most `room` tokens. No token of the document is lost.
        """
        ...
