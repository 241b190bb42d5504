"""int8 weights for the engine's own copy of a model: per output channel, symmetric, activations in bfloat16.

One scale a row keeps the largest weight at 127 (LLM.int8()'s vector-wise weights, arXiv 2208.07339, without its
outlier columns). Embedding, norms and output head stay in bfloat16.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pando.model.config import EXACT
from pando.model.layers import Projection
from pando.model.transformer import Transformer

# Above this many rows, unpacking the weights once and multiplying in bfloat16 is faster (measured on AVX512-BF16).
_GEMM_ROWS = 32


class Int8Projection(Projection):
    """A projection with int8 weights [out, in] and a bfloat16 scale [out]."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None  # type: ignore[assignment]

    def __init__(self, source: Projection) -> None:
        nn.Module.__init__(self)
        self.site = source.site
        self.in_features, self.out_features = source.in_features, source.out_features
        weight = source.weight.detach().float()
        scale = (weight.abs().amax(dim=1) / 127).clamp_min(1e-12)
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale.bfloat16())
        self.register_buffer("bias", None if source.bias is None else source.bias.detach().bfloat16())

    @property
    def number(self) -> torch.dtype:
        """The dtype it computes in."""
        return torch.bfloat16

    def project(self, x: Tensor) -> Tensor:
        """x bfloat16 [..., in] -> [..., out]."""
        flat = x.flatten(0, -2)
        if flat.shape[0] <= _GEMM_ROWS:
            y = torch._weight_int8pack_mm(flat, self.weight, self.scale)
        else:
            y = F.linear(flat, self.weight.to(x.dtype) * self.scale[:, None])
        y = y.reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


def quantise(model: Transformer) -> Transformer:
    """Replaces every projection inside the blocks by its int8 version, in place; the rest becomes bfloat16, but for
    what `EXACT` names."""
    for block in model.blocks:
        for module in list(block.modules()):
            for name, child in module.named_children():
                if isinstance(child, Projection):
                    setattr(module, name, Int8Projection(child))
    for name, parameter in model.named_parameters():
        if not name.endswith(EXACT):
            parameter.data = parameter.data.bfloat16()
    return model
