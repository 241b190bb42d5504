"""Relative positions in buckets (T5, arXiv 1910.10683, section 2.1): what the distance between two tokens adds to their
score, a number for each head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pando.model.config import RelativeConfig


def bias(table: Tensor, config: RelativeConfig, queries: Tensor, keys: Tensor, *, both_ways: bool) -> Tensor:
    """What is added to scores.

    Args:
        table: [buckets, heads]. queries: positions, integers [..., T]. keys: [..., L].
        both_ways: half of the buckets are for keys behind the query; else those all share the bucket of distance 0.

    Returns:
        [..., heads, T, L].
    """
    found = table[buckets(config, keys[..., None, :] - queries[..., :, None], both_ways=both_ways)]
    return found.movedim(-1, -3)


def buckets(config: RelativeConfig, ahead: Tensor, *, both_ways: bool) -> Tensor:
    """The bucket of each distance `ahead` (key less query), int64 of the same shape: near ones have their own, further
    ones share them on a scale of logarithms."""
    count, first = config.buckets, torch.zeros_like(ahead)
    if both_ways:
        count //= 2
        first = torch.where(ahead > 0, count, 0)
        distance = ahead.abs()
    else:
        distance = (-ahead).clamp_min(0)
    near = count // 2
    further = (distance.float() / near).log() / math.log(config.furthest / near) * (count - near)
    shared = (near + further.clamp_min(0).long()).clamp_max(count - 1)  # the logarithm of 0 is never used
    return first + torch.where(distance < near, distance, shared)
