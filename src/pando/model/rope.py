"""Rotary position embedding with the published ways to stretch it. Pairs are (i, i + dim/2), as in Hugging Face."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from pando.model.config import RopeConfig, RopeScaling


@lru_cache(maxsize=64)
def frequencies(config: RopeConfig) -> tuple[Tensor, float]:
    """Angular frequencies float32 [dim / 2] in radians a token, and the factor on cos and sin."""
    exponents = torch.arange(0, config.dim, 2, dtype=torch.int64).float() / config.dim
    inverse = 1.0 / config.theta**exponents
    scaling = config.scaling
    if scaling is None:
        return inverse, 1.0
    if scaling.kind == "linear":
        return inverse / scaling.factor, 1.0
    if scaling.kind == "llama3":
        return _llama3(inverse, scaling), 1.0
    return _yarn(config, inverse, scaling)


def _llama3(inverse: Tensor, scaling: RopeScaling) -> Tensor:
    """Long wavelengths are stretched, short ones kept, the band between blended (Llama 3.1 reference code)."""
    wavelength = 2 * math.pi / inverse
    longest = scaling.original_length / scaling.low_freq_factor
    shortest = scaling.original_length / scaling.high_freq_factor
    span = scaling.high_freq_factor - scaling.low_freq_factor
    smooth = (scaling.original_length / wavelength - scaling.low_freq_factor) / span
    blended = (1 - smooth) * inverse / scaling.factor + smooth * inverse
    stretched = torch.where(wavelength > longest, inverse / scaling.factor, inverse)
    return torch.where((wavelength <= longest) & (wavelength >= shortest), blended, stretched)


def _yarn(config: RopeConfig, inverse: Tensor, scaling: RopeScaling) -> tuple[Tensor, float]:
    """Interpolates dimensions that turn rarely, keeps those that turn often (arXiv 2309.00071, section 3.2)."""

    def dimension(rotations: float) -> float:
        turns = scaling.original_length / (rotations * 2 * math.pi)
        return config.dim * math.log(turns) / (2 * math.log(config.theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.dim - 1)
    width = max(high - low, 0.001)
    interpolate = ((torch.arange(config.dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    mixed = inverse / scaling.factor * interpolate + inverse * (1 - interpolate)
    factor = scaling.attention_factor
    if factor is None:
        factor = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
    return mixed, factor


def tables(config: RopeConfig, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [*positions.shape, 1, dim] for `positions` (integers), ready to broadcast over heads."""
    inverse, factor = frequencies(config)
    angles = positions[..., None].float() * inverse.to(positions.device)
    angles = torch.cat((angles, angles), dim=-1)[..., None, :]
    return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Rotates the first `dim` dimensions of x [..., heads, head_dim].

    Args:
        interleaved: pairs lie at (2i, 2i + 1) in x, and at (i, i + dim/2) in what is returned, which is of no account
            to products of queries with keys.
    """
    dim = cos.shape[-1]
    turned, kept = x[..., :dim], x[..., dim:]
    if interleaved:
        turned = turned.unflatten(-1, (-1, 2)).mT.flatten(-2)
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-second, first), dim=-1) * sin
    return turned if kept.shape[-1] == 0 else torch.cat((turned, kept), dim=-1)
