"""The transformer: hidden states in, hidden states out. No cache, no mask, no parallelism: those live in the context
and beside the model.

Shapes: `...` is any arrangement of tokens ([N] packed or [B, T] rows), D = d_model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pando.model.config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig, NormConfig
from pando.model.context import Context

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


class Norm(nn.Module):
    """RMSNorm or LayerNorm over the last dimension of [..., size]."""

    def __init__(self, size: int, config: NormConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if config.bias else None

    def forward(self, x: Tensor) -> Tensor:
        config = self.config
        weight = self.weight + config.offset if config.offset else self.weight
        if config.kind == "layer":
            return F.layer_norm(x, weight.shape, weight, self.bias, config.eps)
        return F.rms_norm(x, weight.shape, weight, config.eps)


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
    """Grouped-query attention; positions and who sees whom are the context's business."""

    def __init__(self, layer: int, d_model: int, config: AttentionConfig, norm: NormConfig) -> None:
        super().__init__()
        site = f"layers.{layer}.attention"
        self.layer, self.config = layer, config
        self.q = Projection(f"{site}.q", d_model, config.inner, config.bias)
        self.k = Projection(f"{site}.k", d_model, config.inner_kv, config.bias)
        self.v = Projection(f"{site}.v", d_model, config.inner_kv, config.bias)
        self.o = Projection(f"{site}.o", config.inner, d_model, config.out_bias)
        self.q_norm = self.k_norm = None
        if config.qk_norm is not None:
            whole = config.qk_norm == "whole"
            self.q_norm = Norm(config.inner if whole else config.head_dim, norm)
            self.k_norm = Norm(config.inner_kv if whole else config.head_dim, norm)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        heads = (-1, self.config.head_dim)
        q, k = self.q(x, ctx), self.k(x, ctx)
        v = self.v(x, ctx).unflatten(-1, heads)
        if self.config.qk_norm == "whole":
            q, k = self._normed(q, k)
        q, k = q.unflatten(-1, heads), k.unflatten(-1, heads)
        if self.config.qk_norm == "head":
            q, k = self._normed(q, k)
        if self.config.rope is not None:
            q, k = ctx.rotate(self.config.rope, q, k)
        mixed = ctx.attend(self.layer, self.config, q, k, v).flatten(-2)
        out: Tensor = self.o(mixed, ctx)
        return out

    def _normed(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """In the dtype of what comes in; a norm of another dtype computes in its own."""
        assert self.q_norm is not None and self.k_norm is not None
        number = self.q_norm.weight.dtype
        return self.q_norm(q.to(number)).to(q.dtype), self.k_norm(k.to(number)).to(k.dtype)


class Mlp(nn.Module):
    """Feed-forward layer, gated or not."""

    def __init__(self, layer: int, d_model: int, config: MlpConfig) -> None:
        super().__init__()
        self.config = config
        site = f"layers.{layer}.mlp"
        self.gate = Projection(f"{site}.gate", d_model, config.hidden, config.bias) if config.gated else None
        self.up = Projection(f"{site}.up", d_model, config.hidden, config.bias)
        self.down = Projection(f"{site}.down", config.hidden, d_model, config.bias)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        activation = _ACTIVATIONS[self.config.activation]
        up = self.up(x, ctx)
        hidden = activation(up) if self.gate is None else activation(self.gate(x, ctx)) * up
        out: Tensor = self.down(hidden, ctx)
        return out


class Block(nn.Module):
    """One layer: attention, then the feed-forward layer, each around a residual; `LayerConfig.order` places norms."""

    def __init__(self, layer: int, config: ModelConfig, spec: LayerConfig) -> None:
        super().__init__()

        def norm(there: bool) -> nn.Module:
            return Norm(config.d_model, config.norm) if there else nn.Identity()

        before, after = spec.order != "post", spec.order in ("post", "sandwich")
        self.parallel = spec.order == "parallel"
        self.attention_norm = norm(before)
        self.attention = Attention(layer, config.d_model, spec.attention, config.norm)
        self.attention_post_norm = norm(after)
        self.mlp_norm = norm(before)
        self.mlp = Mlp(layer, config.d_model, spec.mlp)
        self.mlp_post_norm = norm(after)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        y = x + self.attention_post_norm(self.attention(self.attention_norm(x), ctx))
        out: Tensor = y + self.mlp_post_norm(self.mlp(self.mlp_norm(x if self.parallel else y), ctx))
        return out


class Transformer(nn.Module):
    """A stack of blocks between an embedding and an output head. Builds on the meta device.

    Parameters have the names of `ModelConfig.shapes`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = nn.Embedding(config.context_length, config.d_model) if config.learned_positions else None
        self.layers = nn.ModuleList(Block(i, config, spec) for i, spec in enumerate(config.layers))
        self.norm = Norm(config.d_model, config.norm)
        self.unembed = None if config.tied else Projection("unembed", config.d_model, config.vocab_size)

    def forward(self, tokens: Tensor, ctx: Context) -> Tensor:
        """Token ids [...] -> hidden states [..., D] after the final norm."""
        x = self.embed(tokens)
        if self.config.embed_scale != 1:
            x = x * self.config.embed_scale
        if self.positions is not None:
            x = x + self.positions(ctx.positions)
        return self.run(x, ctx)

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
            logits = F.linear(hidden.to(self.embed.weight.dtype), self.embed.weight)
        else:
            logits = self.unembed.project(hidden.to(self.unembed.number))
        cap = self.config.softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

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
                parameter.fill_(1.0 - self.config.norm.offset)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.normal_(0.0, self._deviation(name, parameter.shape[1]), generator=generator)

    def _deviation(self, name: str, inputs: int) -> float:
        """Standard deviation of a fresh matrix."""
        init = self.config.init
        if init is None:
            return self.config.initializer_range
        if name.startswith(("embed", "positions", "unembed")):
            return init.head if name.startswith("unembed") else init.embedding
        deviation = inputs**-0.5 if init.matrices is None else init.matrices
        return deviation * init.outputs if name.endswith((".o.weight", ".down.weight")) else deviation
