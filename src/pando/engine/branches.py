"""Continuations of one context as a tree, so that what they share is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass
class Branches:
    """Continuations merged into a prefix tree; nodes are numbered parents first, the root (the context) is -1.

    Only nodes that something follows are computed: the last token of a continuation needs no forward pass.

    Attributes:
        tokens, parents, depths: of each computed node.
        edges: (parent, token, continuation) of every continuation's every token, in order.
    """

    tokens: list[int]
    parents: list[int]
    depths: list[int]
    edges: list[tuple[int, int, int]]

    @classmethod
    def build(cls, continuations: Sequence[tuple[int, list[int]]]) -> Branches:
        """Merges (number, tokens) pairs."""
        nodes: dict[tuple[int, int], int] = {}
        tree = cls([], [], [], [])
        for number, tokens in continuations:
            parent = -1
            for depth, token in enumerate(tokens):
                tree.edges.append((parent, token, number))
                if depth == len(tokens) - 1:
                    break
                node = nodes.get((parent, token))
                if node is None:
                    node = nodes[parent, token] = len(tree.tokens)
                    tree.tokens.append(token)
                    tree.parents.append(parent)
                    tree.depths.append(depth)
                parent = node
        return tree

    def visible(self) -> NDArray[np.bool_]:
        """bool [B, B]: each node sees its ancestors and itself."""
        mask = np.eye(len(self.tokens), dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                mask[node] |= mask[parent]
        return mask
