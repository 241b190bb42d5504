"""The transformer: hidden states in, hidden states out. No cache, no mask, no parallelism: those live in the context
and beside the model.

Shapes: `...` is any arrangement of tokens ([N] packed or [B, T] rows), D = d_model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pando.model.config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig
from pando.model.context import Context

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


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
        return self.weight.dtype

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
    """Grouped-query attention with rotary positions; who sees whom is the context's business."""

    def __init__(self, layer: int, d_model: int, config: AttentionConfig, norm_eps: float) -> None:
        super().__init__()
        site = f"layers.{layer}.attention"
        inner, inner_kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.layer, self.config = layer, config
        self.q = Projection(f"{site}.q", d_model, inner, config.bias)
        self.k = Projection(f"{site}.k", d_model, inner_kv, config.bias)
        self.v = Projection(f"{site}.v", d_model, inner_kv, config.bias)
        self.o = Projection(f"{site}.o", inner, d_model, config.bias)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=norm_eps) if config.qk_norm else None
        self.k_norm = nn.RMSNorm(config.head_dim, eps=norm_eps) if config.qk_norm else None

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        heads = (-1, self.config.head_dim)
        q = self.q(x, ctx).unflatten(-1, heads)
        k = self.k(x, ctx).unflatten(-1, heads)
        v = self.v(x, ctx).unflatten(-1, heads)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = _normed(self.q_norm, q), _normed(self.k_norm, k)
        q, k = ctx.rotate(self.config.rope, q, k)
        mixed = ctx.attend(self.layer, self.config, q, k, v).flatten(-2)
        out: Tensor = self.o(mixed, ctx)
        return out


def _normed(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """norm(x) in the dtype of x; a norm of another dtype than what comes in computes in its own."""
    out: Tensor = norm(x.to(norm.weight.dtype)).to(x.dtype)
    return out


class Mlp(nn.Module):
    """Gated feed-forward layer."""

    def __init__(self, layer: int, d_model: int, config: MlpConfig) -> None:
        super().__init__()
        self.config = config
        site = f"layers.{layer}.mlp"
        self.gate = Projection(f"{site}.gate", d_model, config.hidden, config.bias)
        self.up = Projection(f"{site}.up", d_model, config.hidden, config.bias)
        self.down = Projection(f"{site}.down", config.hidden, d_model, config.bias)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        activation = _ACTIVATIONS[self.config.activation]
        out: Tensor = self.down(activation(self.gate(x, ctx)) * self.up(x, ctx), ctx)
        return out


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, layer: int, config: ModelConfig, spec: LayerConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.attention = Attention(layer, config.d_model, spec.attention, config.norm_eps)
        self.mlp_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.mlp = Mlp(layer, config.d_model, spec.mlp)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        x = x + self.attention(self.attention_norm(x), ctx)
        out: Tensor = x + self.mlp(self.mlp_norm(x), ctx)
        return out


class Transformer(nn.Module):
    """A stack of blocks between an embedding and an output head. Builds on the meta device.

    Parameter names: `embed.weight`, `layers.{i}.{attention_norm,mlp_norm}.weight`,
    `layers.{i}.attention.{q,k,v,o}.{weight,bias}`, `layers.{i}.attention.{q_norm,k_norm}.weight` where queries and keys
    are normed, `layers.{i}.mlp.{gate,up,down}.{weight,bias}`, `norm.weight`, and `unembed.weight` unless the head is
    tied.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Block(i, config, spec) for i, spec in enumerate(config.layers))
        self.norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.unembed = None if config.tied else Projection("unembed", config.d_model, config.vocab_size)

    def forward(self, tokens: Tensor, ctx: Context) -> Tensor:
        """Token ids [...] -> hidden states [..., D] after the final norm."""
        return self.run(self.embed(tokens), ctx)

    def run(self, x: Tensor, ctx: Context) -> Tensor:
        """Input vectors [..., D] -> hidden states [..., D] after the final norm."""
        if ctx.observe is not None:
            ctx.observe(0, x)
        last = len(self.layers)
        for i, block in enumerate(self.layers, start=1):
            x = block(x, ctx)
            if ctx.observe is not None and i < last:
                ctx.observe(i, x)
        x = self.norm(x)
        if ctx.observe is not None:
            ctx.observe(last, x)
        return x

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] -> logits [..., vocab]."""
        if self.unembed is None:
            return F.linear(hidden.to(self.embed.weight.dtype), self.embed.weight)
        return self.unembed.project(hidden.to(self.unembed.number))

    @property
    def head_weight(self) -> Tensor:
        """The matrix of the output head, [vocab, D]; no head of a supported family has a bias."""
        return self.embed.weight if self.unembed is None else self.unembed.weight

    def projections(self) -> dict[str, Projection]:
        """Every adaptable projection by its site, in the order of the forward pass."""
        return {m.site: m for m in self.layers.modules() if isinstance(m, Projection)}

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Fills weights with fresh normal values as the config says, norms with ones."""
        generator = torch.Generator(device=self.embed.weight.device).manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.normal_(0.0, self._deviation(name, parameter.shape[1]), generator=generator)

    def _deviation(self, name: str, inputs: int) -> float:
        """Standard deviation of a fresh matrix."""
        init = self.config.init
        if init is None:
            return self.config.initializer_range
        if name.startswith(("embed", "unembed")):
            return init.embedding if name.startswith("embed") else init.head
        deviation = inputs**-0.5 if init.matrices is None else init.matrices
        return deviation * init.outputs if name.endswith((".o.weight", ".down.weight")) else deviation
