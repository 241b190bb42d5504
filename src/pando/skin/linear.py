"""A linear classifier as numbers: what logistic regression leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Linear:
    """Softmax of (x - mean) W^T + b.

    Attributes:
        weight: float32 [classes, d].
        bias: float32 [classes].
        mean: float32 [d] that inputs are centred by, or None (sparse inputs stay sparse).
    """

    weight: np.ndarray
    bias: np.ndarray
    mean: np.ndarray | None = None

    def probabilities(self, x: Any) -> np.ndarray:
        """Dense or sparse [n, d] -> float64 [n, classes]; each row sums to 1."""
        if self.mean is not None:
            x = x - self.mean
        return softmax(np.asarray(x @ self.weight.T, dtype=np.float64) + self.bias)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last dimension, in float64."""
    shifted = np.asarray(logits, dtype=np.float64)
    shifted = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    result: np.ndarray = shifted / shifted.sum(axis=-1, keepdims=True)
    return result
