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
from pando.model.layers import (
    ACTIVATIONS,
    Attention,
    CrossAttention,
    ExpertProjection,
    LatentAttention,
    Mlp,
    Norm,
    Projection,
)


class Block(nn.Module):
    """One layer: attention, what the encoder says where there is one, then the feed-forward layer, each around a
    residual; `LayerConfig.order` places norms.

    Args:
        prefix: of the sites of its projections. layer: its number in the stack.
    """

    def __init__(self, prefix: str, layer: int, config: ModelConfig, spec: LayerConfig) -> None:
        super().__init__()
        norms, site = spec.norms, f"{prefix}layers.{layer}"

        def norm(name: str) -> nn.Module:
            return Norm(config.d_model, config.norm) if norms[name] else nn.Identity()

        self.order = spec.order
        self.attention_norm = norm("attention_norm")
        attention = Attention if spec.attention.latent is None else LatentAttention
        self.attention = attention(f"{site}.attention", layer, config.d_model, spec.attention, config.norm)
        self.attention_post_norm = norm("attention_post_norm")
        self.cross: CrossAttention | None = None
        if spec.cross is not None:
            self.cross_norm = norm("cross_norm")
            self.cross = CrossAttention(f"{site}.cross", layer, config.d_model, spec.cross, config.norm)
            self.cross_post_norm = norm("cross_post_norm")
        self.mlp_norm = norm("mlp_norm")
        self.mlp = (
            Experts(f"{site}.mlp", layer, config.d_model, spec.mlp)
            if isinstance(spec.mlp, ExpertsConfig)
            else Mlp(f"{site}.mlp", config.d_model, spec.mlp)
        )
        self.mlp_post_norm = norm("mlp_post_norm")

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        attended = self.attention(self.attention_norm(x), ctx)
        if self.order == "after":
            y = self.attention_post_norm(x + attended)
            if self.cross is not None:
                y = self.cross_post_norm(y + self.cross(self.cross_norm(y), ctx))
            after: Tensor = self.mlp_post_norm(y + self.mlp(self.mlp_norm(y), ctx))
            return after
        y = x + self.attention_post_norm(attended)
        if self.cross is not None:
            y = y + self.cross_post_norm(self.cross(self.cross_norm(y), ctx))
        out: Tensor = y + self.mlp_post_norm(self.mlp(self.mlp_norm(x if self.order == "parallel" else y), ctx))
        return out


class Stack(nn.Module):
    """Blocks, and what their input gets besides the tokens' vectors.

    Args:
        prefix: of the sites of its projections.
        embed: becomes a part of it; an encoder is given vectors.
    """

    def __init__(self, config: ModelConfig, prefix: str = "", embed: nn.Embedding | None = None) -> None:
        super().__init__()
        self.config = config
        if embed is not None:
            self.embed = embed
        places = config.context_length + config.position_offset
        self.positions = nn.Embedding(places, config.d_model) if config.learned_positions else None
        self.token_types = nn.Embedding(config.token_types, config.d_model) if config.token_types else None
        self.embed_norm = Norm(config.d_model, config.norm) if config.embed_norm else nn.Identity()
        attention = config.layers[0].attention
        related = attention.relative
        self.relative = None if related is None else nn.Embedding(related.buckets, attention.heads)
        self.layers = nn.ModuleList(Block(prefix, i, config, spec) for i, spec in enumerate(config.layers))
        self.norm = Norm(config.d_model, config.norm) if config.final_norm else nn.Identity()

    def run(self, x: Tensor, ctx: Context) -> Tensor:
        """The tokens' vectors [..., D] -> hidden states [..., D] after the final norm."""
        if self.positions is not None:
            x = x + self.positions(ctx.positions + self.config.position_offset)
        if self.token_types is not None:
            x = x + (self.token_types.weight[0] if ctx.kinds is None else self.token_types(ctx.kinds))
        x = self.embed_norm(x)
        related = self.config.layers[0].attention.relative
        if self.relative is not None and related is not None:
            ctx.relate(related, self.relative.weight)
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


class Transformer(Stack):
    """A stack of blocks between an embedding and an output head, and the encoder that it looks at, if there is one.
    Builds on the meta device.

    Parameters have the names of `ModelConfig.shapes`.
    """

    embed: nn.Embedding

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, embed=nn.Embedding(config.vocab_size, config.d_model))
        head = config.head
        if head is not None:
            self.head_dense = nn.Linear(config.d_model, config.d_model, bias=head.dense_bias)
            self.head_norm = Norm(config.d_model, config.norm)
        self.head_bias = nn.Parameter(torch.zeros(config.vocab_size)) if head is not None and head.bias else None
        if config.judges:
            self.judge_dense = nn.Linear(config.d_model, config.d_model)
            self.judge_out = nn.Linear(config.d_model, 1)
        self.unembed = None if config.tied else Projection("unembed", config.d_model, config.vocab_size)
        self.encoder = None if config.encoder is None else Stack(config.encoder, "encoder.")

    def forward(self, tokens: Tensor, ctx: Context) -> Tensor:
        """Token ids [...] -> hidden states [..., D] after the final norm; of an encoder-decoder, the decoder's, after
        its encoder has read `ctx.source`, if there is one."""
        if ctx.source is not None:
            ctx.memory = self.encode(*ctx.source)
        return self.run(self.vectors(tokens), ctx)

    def encode(self, tokens: Tensor, ctx: Context) -> Tensor:
        """Token ids [...] -> the encoder's hidden states [..., D]."""
        assert self.encoder is not None
        return self.encoder.run(self.vectors(tokens), ctx)

    def vectors(self, tokens: Tensor) -> Tensor:
        """Token ids [...] -> their rows of the embedding, [..., D]."""
        x: Tensor = self.embed(tokens)
        return x if self.config.embed_scale == 1 else x * self.config.embed_scale

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks, the encoder's first, in the order of the forward pass."""
        first = [] if self.encoder is None else [*self.encoder.layers]
        return [*first, *self.layers]

    def before_head(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] -> what the head's matrix is multiplied with, [..., D]."""
        head = self.config.head
        if head is None:
            return hidden if self.config.head_scale == 1 else hidden * self.config.head_scale
        made: Tensor = self.head_norm(ACTIVATIONS[head.activation](self.head_dense(hidden)))
        return made

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] -> logits [..., vocab]."""
        hidden = self.before_head(hidden.to(self.embed.weight.dtype))
        logits = F.linear(hidden.to(self.head_weight.dtype), self.head_weight, self.head_bias)
        cap = self.config.softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def judge(self, hidden: Tensor) -> Tensor:
        """Hidden states of first tokens [n, D] -> how well the second text of each pair answers the first, as the logit
        of a probability, [n]."""
        made: Tensor = self.judge_out(torch.tanh(self.judge_dense(hidden.to(self.judge_dense.weight.dtype))))
        return made[..., 0]

    @property
    def head_weight(self) -> Tensor:
        """The matrix of the output head, [vocab, D]."""
        return self.embed.weight if self.unembed is None else self.unembed.weight

    def projections(self) -> dict[str, Projection | ExpertProjection]:
        """Every adaptable projection by its site, in the order of the forward pass."""
        modules = (module for block in self.blocks for module in block.modules())
        return {m.site: m for m in modules if isinstance(m, (Projection, ExpertProjection))}

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
        if name.removeprefix("encoder.").startswith(("embed", "positions", "token_types", "relative", "unembed")):
            return init.head if name.startswith("unembed") else init.embedding
        deviation = inputs**-0.5 if init.matrices is None else init.matrices
        attention = self.config.layers[0].attention
        if attention.scale is not None and name.endswith(".q.weight"):
            deviation /= attention.scale * attention.head_dim**0.5  # scores begin as large as with the usual scale
        return deviation * init.outputs if name.endswith((".o.weight", ".down.weight")) else deviation
