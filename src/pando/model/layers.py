"""What blocks are made of: projections, norms, attention, the feed-forward layer.

Shapes: `...` is any arrangement of tokens ([N] packed or [B, T] rows), D = d_model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pando.model.config import AttentionConfig, MlpConfig, NormConfig
from pando.model.context import Context

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


class ExpertProjection(nn.Module):
    """A linear layer of each expert, [experts, out, in]; adapters address the stack by its site."""

    def __init__(self, site: str, experts: int, d_in: int, d_out: int) -> None:
        super().__init__()
        self.site, self.experts, self.in_features, self.out_features = site, experts, d_in, d_out
        self.weight = nn.Parameter(torch.empty(experts, d_out, d_in))

    def forward(self, x: Tensor, counts: Tensor, tokens: Tensor, ctx: Context) -> Tensor:
        """x [M, in], sorted by expert, of which each has so many rows (`counts`); `tokens` [M] are their places in the
        pass -> [M, out]."""
        y = grouped_product(x, self.weight, counts)
        if ctx.adapters is not None:
            change = ctx.adapters.grouped(self.site, x, counts, tokens)
            if change is not None:
                y = y + change
        return y


def product_dtype(weight: Tensor) -> torch.dtype:
    """Of products with a weight: autocast's, where it is on, or its own."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def grouped_product(x: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    """x [M, in], sorted by group, times each group's own of weights [groups, out, in]: [M, out]."""
    number = product_dtype(weights)
    x, weights = x.to(number), weights.to(number)
    if x.is_cuda and number == torch.bfloat16:  # the only one that the kernel takes
        made: Tensor = torch._grouped_mm(x, weights.mT, counts.cumsum(0).int())
        return made
    found: Tensor = _GroupedProduct.apply(x, weights, counts.tolist())  # type: ignore[no-untyped-call]
    return found


class _GroupedProduct(torch.autograd.Function):
    """Group by group, each product written where it belongs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, counts: list[int]) -> Tensor:
        wants_x, wants_weights, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if wants_weights else None, weights if wants_x else None)
        ctx.counts = counts
        out = x.new_empty(x.shape[0], weights.shape[1])
        for part, own, found in zip(x.split(counts), weights, out.split(counts), strict=True):
            torch.mm(part, own.T, out=found)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weights = ctx.saved_tensors
        grads = grad.contiguous().split(ctx.counts)
        d_x = d_weights = None
        if weights is not None:
            d_x = grad.new_empty(grad.shape[0], weights.shape[2])
            for one, own, found in zip(grads, weights, d_x.split(ctx.counts), strict=True):
                torch.mm(one, own, out=found)
        if x is not None:
            d_weights = grad.new_empty(len(ctx.counts), grad.shape[1], x.shape[1])
            for one, part, found in zip(grads, x.split(ctx.counts), d_weights, strict=True):
                torch.mm(one.T, part, out=found)
        return d_x, d_weights, None


class Norm(nn.Module):
    """RMSNorm or LayerNorm over the last dimension of [..., size], in the dtype of its own weights."""

    def __init__(self, size: int, config: NormConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if config.bias else None

    def forward(self, x: Tensor) -> Tensor:
        config = self.config
        weight = self.weight + config.offset if config.offset else self.weight
        x = x.to(weight.dtype)
        if config.kind == "layer":
            return F.layer_norm(x, weight.shape, weight, self.bias, config.eps)
        plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()
        if plain and torch.is_grad_enabled():
            found: Tensor = _RmsNorm.apply(x, weight, config.eps)  # type: ignore[no-untyped-call]
            return found
        return F.rms_norm(x, weight.shape, weight, config.eps)


class _RmsNorm(torch.autograd.Function):
    """RMSNorm with its gradient in half the operations that torch makes of it on a CPU, where it has no kernel for it
    (nor a compiler has made one)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        inverse = squares.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        made: Tensor = (x * inverse).mul_(weight)
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        normed = x * inverse
        products = grad * normed
        d_weight = products.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        mean = (products @ weight)[..., None].div_(x.shape[-1])
        return (grad * weight).sub_(normed.mul_(mean)).mul_(inverse), d_weight, None


class Projection(nn.Linear):
    """A linear layer that adapters can address by its path in the model (`site`).

    It computes in the dtype of its own weights, whatever comes in. Mixed precision is nothing more than projections
    in bfloat16 between a float32 embedding and float32 norms: the residual stream then stays float32.
    """

    def __init__(self, site: str, d_in: int, d_out: int, bias: bool = False) -> None:
        super().__init__(d_in, d_out, bias=bias)
        self.site = site

    @property
    def number(self) -> torch.dtype:
        """The dtype it computes in."""
        return product_dtype(self.weight)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:  # type: ignore[override]
        x = x.to(self.number)
        y = self.project(x)
        if ctx.adapters is not None:
            delta = ctx.adapters.delta(self.site, x)
            if delta is not None:
                y = y + delta
        return y

    def project(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out] by the base's own weights; x has this projection's dtype."""
        return F.linear(x, self.weight, self.bias)


class Attention(nn.Module):
    """Grouped-query attention; positions and who sees whom are the context's business."""

    def __init__(self, site: str, layer: int, d_model: int, config: AttentionConfig, norm: NormConfig) -> None:
        super().__init__()
        self.layer, self.config = layer, config
        self.q = Projection(f"{site}.q", d_model, config.inner, config.bias)
        self.k = Projection(f"{site}.k", d_model, config.inner_kv, config.bias)
        self.v = Projection(f"{site}.v", d_model, config.inner_kv, config.bias)
        self.o = Projection(f"{site}.o", config.inner, d_model, config.out_bias)
        if config.qk_norm is not None:
            whole = config.qk_norm == "whole"
            self.q_norm = Norm(config.inner if whole else config.head_dim, norm)
            self.k_norm = Norm(config.inner_kv if whole else config.head_dim, norm)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        heads, x = (-1, self.config.head_dim), x.to(self.q.number)
        q, k = self.q(x, ctx), self.k(x, ctx)
        v = self.v(x, ctx).unflatten(-1, heads)
        if self.config.qk_norm == "whole":
            q, k = _normed(self.q_norm, q), _normed(self.k_norm, k)
        q, k = q.unflatten(-1, heads), k.unflatten(-1, heads)
        if self.config.qk_norm == "head":
            q, k = _normed(self.q_norm, q), _normed(self.k_norm, k)
        if self.config.rope is not None:
            q, k = ctx.rotate(self.config.rope, q, k)
        mixed = ctx.attend(self.layer, self.config, q, k, v).flatten(-2)
        out: Tensor = self.o(mixed, ctx)
        return out


class CrossAttention(Attention):
    """Attention of a decoder over what the encoder made of its input, which has no positions of its own."""

    def remember(self, hidden: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        """The encoder's hidden states [..., D], with its context -> keys and values [..., kv_heads, head_dim]."""
        heads = (-1, self.config.head_dim)
        return self.k(hidden, ctx).unflatten(-1, heads), self.v(hidden, ctx).unflatten(-1, heads)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        q = self.q(x, ctx).unflatten(-1, (-1, self.config.head_dim))
        mixed = ctx.consult(self.layer, self.config, q, self.remember).flatten(-2)
        out: Tensor = self.o(mixed, ctx)
        return out


class LatentAttention(nn.Module):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    A context that keeps tokens (`ctx.absorbs`) sees the latent vectors themselves as its keys and values, shared by all
    heads: what turns them into each head's own is multiplied into queries and answers. Others see each head's own,
    which takes fewer products where nothing is kept. `kv_b` is for that reason no projection that adapters address.
    """

    def __init__(self, site: str, layer: int, d_model: int, config: AttentionConfig, norm: NormConfig) -> None:
        super().__init__()
        latent = config.latent
        assert latent is not None
        self.layer, self.config, self.latent = layer, config, latent
        self.plain = config.head_dim - latent.rope_dim  # numbers of a key without positions
        norm = replace(norm, eps=latent.eps)
        if latent.q_rank is not None:
            self.q_a = Projection(f"{site}.q_a", d_model, latent.q_rank, config.bias)
            self.q_norm = Norm(latent.q_rank, norm)
        self.q = Projection(f"{site}.q", latent.q_rank or d_model, config.inner)
        self.kv_a = Projection(f"{site}.kv_a", d_model, latent.rank + latent.rope_dim, config.bias)
        self.kv_norm = Norm(latent.rank, norm)
        self.kv_b = nn.Linear(latent.rank, config.heads * (self.plain + latent.value_dim), bias=False)
        self.o = Projection(f"{site}.o", config.heads * latent.value_dim, d_model, config.out_bias)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        config, latent, x = self.config, self.latent, x.to(self.kv_a.number)
        assert config.rope is not None
        q = self.q(x if latent.q_rank is None else _normed(self.q_norm, self.q_a(x, ctx)), ctx)
        q_plain, q_turned = q.unflatten(-1, (config.heads, -1)).split([self.plain, latent.rope_dim], dim=-1)
        c, k_turned = self.kv_a(x, ctx).split([latent.rank, latent.rope_dim], dim=-1)
        c, k_turned = _normed(self.kv_norm, c)[..., None, :], k_turned[..., None, :]
        q_turned, k_turned = ctx.rotate(config.rope, q_turned, k_turned)
        weights = self.kv_b.weight.to(c.dtype).unflatten(0, (config.heads, -1))
        to_keys, to_values = weights.split([self.plain, latent.value_dim], dim=1)  # [heads, ..., rank] each
        if ctx.absorbs:
            q_plain = torch.einsum("...hn,hnr->...hr", q_plain, to_keys)
            k = torch.cat((c, k_turned), dim=-1)
            mixed = ctx.attend(self.layer, config, torch.cat((q_plain, q_turned), dim=-1), k, c)
            mixed = torch.einsum("...hr,hvr->...hv", mixed, to_values)
        else:
            k_plain = torch.einsum("...xr,hnr->...hn", c, to_keys)
            k = torch.cat((k_plain, k_turned.expand(*k_plain.shape[:-1], -1)), dim=-1)
            v = torch.einsum("...xr,hvr->...hv", c, to_values)
            mixed = ctx.attend(self.layer, config, torch.cat((q_plain, q_turned), dim=-1), k, v)
        out: Tensor = self.o(mixed.flatten(-2), ctx)
        return out


def _normed(norm: Norm, x: Tensor) -> Tensor:
    """norm(x) in the dtype of x; a norm of another dtype than what comes in computes in its own."""
    out: Tensor = norm(x.to(norm.weight.dtype)).to(x.dtype)
    return out


class Mlp(nn.Module):
    """Feed-forward layer, gated or not."""

    def __init__(self, site: str, d_model: int, config: MlpConfig) -> None:
        super().__init__()
        self.config = config
        self.gate = Projection(f"{site}.gate", d_model, config.hidden, config.bias) if config.gated else None
        self.up = Projection(f"{site}.up", d_model, config.hidden, config.bias)
        self.down = Projection(f"{site}.down", config.hidden, d_model, config.bias)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        activation, x = ACTIVATIONS[self.config.activation], x.to(self.up.number)
        up = self.up(x, ctx)
        hidden = activation(up) if self.gate is None else activation(self.gate(x, ctx)) * up
        out: Tensor = self.down(hidden, ctx)
        return out
