"""The transformer: hidden states in, hidden states out. No cache, no mask, no parallelism: those live in the context
and beside the model.

Shapes: `...` is any arrangement of tokens ([N] packed or [B, T] rows), D = d_model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pando.model.config import ExpertsConfig, LayerConfig, ModelConfig
from pando.model.context import Context
from pando.model.experts import Experts
from pando.model.layers import ACTIVATIONS, Attention, ExpertProjection, LatentAttention, Mlp, Norm, Projection


class Block(nn.Module):
    """One layer: attention, then the feed-forward layer, each around a residual; `LayerConfig.order` places norms."""

    def __init__(self, layer: int, config: ModelConfig, spec: LayerConfig) -> None:
        super().__init__()

        norms = spec.norms

        def norm(name: str) -> nn.Module:
            return Norm(config.d_model, config.norm) if norms[name] else nn.Identity()

        self.order = spec.order
        self.attention_norm = norm("attention_norm")
        attention = Attention if spec.attention.latent is None else LatentAttention
        self.attention = attention(layer, config.d_model, spec.attention, config.norm)
        self.attention_post_norm = norm("attention_post_norm")
        self.mlp_norm = norm("mlp_norm")
        self.mlp = (
            Experts(layer, config.d_model, spec.mlp)
            if isinstance(spec.mlp, ExpertsConfig)
            else Mlp(f"layers.{layer}.mlp", config.d_model, spec.mlp)
        )
        self.mlp_post_norm = norm("mlp_post_norm")

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        attended = self.attention(self.attention_norm(x), ctx)
        if self.order == "after":
            y = self.attention_post_norm(x + attended)
            after: Tensor = self.mlp_post_norm(y + self.mlp(self.mlp_norm(y), ctx))
            return after
        y = x + self.attention_post_norm(attended)
        out: Tensor = y + self.mlp_post_norm(self.mlp(self.mlp_norm(x if self.order == "parallel" else y), ctx))
        return out


class Transformer(nn.Module):
    """A stack of blocks between an embedding and an output head. Builds on the meta device.

    Parameters have the names of `ModelConfig.shapes`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        places = config.context_length + config.position_offset
        self.positions = nn.Embedding(places, config.d_model) if config.learned_positions else None
        self.token_types = nn.Embedding(config.token_types, config.d_model) if config.token_types else None
        self.embed_norm = Norm(config.d_model, config.norm) if config.embed_norm else nn.Identity()
        self.layers = nn.ModuleList(Block(i, config, spec) for i, spec in enumerate(config.layers))
        self.norm = Norm(config.d_model, config.norm) if config.final_norm else nn.Identity()
        head = config.head
        if head is not None:
            self.head_dense = nn.Linear(config.d_model, config.d_model, bias=head.dense_bias)
            self.head_norm = Norm(config.d_model, config.norm)
        self.head_bias = nn.Parameter(torch.zeros(config.vocab_size)) if head is not None and head.bias else None
        self.unembed = None if config.tied else Projection("unembed", config.d_model, config.vocab_size)

    def forward(self, tokens: Tensor, ctx: Context) -> Tensor:
        """Token ids [...] -> hidden states [..., D] after the final norm."""
        x = self.embed(tokens)
        if self.config.embed_scale != 1:
            x = x * self.config.embed_scale
        if self.positions is not None:
            x = x + self.positions(ctx.positions + self.config.position_offset)
        if self.token_types is not None:
            x = x + self.token_types.weight[0]
        return self.run(self.embed_norm(x), ctx)

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

    def before_head(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] -> what the head's matrix is multiplied with, [..., D]."""
        head = self.config.head
        if head is None:
            return hidden
        made: Tensor = self.head_norm(ACTIVATIONS[head.activation](self.head_dense(hidden)))
        return made

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] -> logits [..., vocab]."""
        hidden = self.before_head(hidden.to(self.embed.weight.dtype))
        logits = F.linear(hidden.to(self.head_weight.dtype), self.head_weight, self.head_bias)
        cap = self.config.softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @property
    def head_weight(self) -> Tensor:
        """The matrix of the output head, [vocab, D]."""
        return self.embed.weight if self.unembed is None else self.unembed.weight

    def projections(self) -> dict[str, Projection | ExpertProjection]:
        """Every adaptable projection by its site, in the order of the forward pass."""
        return {m.site: m for m in self.layers.modules() if isinstance(m, (Projection, ExpertProjection))}

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
                parameter.normal_(0.0, self._deviation(name, parameter.shape[-1]), generator=generator)

    def _deviation(self, name: str, inputs: int) -> float:
        """Standard deviation of a fresh matrix."""
        init = self.config.init
        if init is None:
            return self.config.initializer_range
        if name.startswith(("embed", "positions", "token_types", "unembed")):
            return init.head if name.startswith("unembed") else init.embedding
        deviation = inputs**-0.5 if init.matrices is None else init.matrices
        return deviation * init.outputs if name.endswith((".o.weight", ".down.weight")) else deviation
