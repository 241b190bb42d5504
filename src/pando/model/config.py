"""The shape of a transformer, as small frozen dataclasses. A family file makes one from a Hugging Face config.

Every number that costs something (parameters, FLOPs, cache bytes) is computed here, so that a base can be judged
from its config alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained length.

    Attributes:
        kind: "linear" (position interpolation, arXiv 2306.15595), "llama3" (Llama 3.1's frequency-dependent rule) or
            "yarn" (arXiv 2309.00071).
        factor: stretch of the context length.
        original_length: context length before stretching, in tokens ("llama3" and "yarn").
        low_freq_factor, high_freq_factor: "llama3" band limits.
        beta_fast, beta_slow: "yarn" band limits, in rotations.
        attention_factor: "yarn" factor on cos and sin; None is 0.1 ln(factor) + 1.
        truncate: "yarn": whether band limits are rounded to whole dimensions.
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    original_length: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True


@dataclass(frozen=True)
class RopeConfig:
    """Rotary positions (arXiv 2104.09864) over the first `dim` dimensions of each head."""

    dim: int
    theta: float = 10_000.0
    scaling: RopeScaling | None = None


@dataclass(frozen=True)
class NormConfig:
    """A norm over the last dimension.

    Attributes:
        kind: "rms" (RMSNorm, arXiv 1910.07467) or "layer" (LayerNorm, arXiv 1607.06450).
        eps: added to the variance.
        bias: whether there is one ("layer" only).
        offset: added to the weight; Gemma keeps weights less 1.
    """

    kind: Literal["rms", "layer"] = "rms"
    eps: float = 1e-5
    bias: bool = False
    offset: float = 0.0


@dataclass(frozen=True)
class AttentionConfig:
    """Grouped-query attention (arXiv 2305.13245): `heads` queries share `kv_heads` keys and values.

    Attributes:
        rope: rotary positions, or None: this layer knows no positions (arXiv 2305.19466), or they were added before.
        bias: of the projections to queries, keys and values. out_bias: of the one back.
        qk_norm: queries and keys are normed before they are rotated: "head" by head (arXiv 2010.04245 in the form of
            Qwen3, arXiv 2505.09388), or as a "whole" (OLMo 2, arXiv 2501.00656).
        window: a token sees so many, itself and those just before it (arXiv 2004.05150); None: all before it.
        softcap: scores s become c tanh(s / c) (Gemma 2, arXiv 2408.00118).
        scale: of the scores; None is 1 / sqrt(head_dim).
    """

    heads: int
    kv_heads: int
    head_dim: int
    rope: RopeConfig | None
    bias: bool = False
    out_bias: bool = False
    qk_norm: Literal["head", "whole"] | None = None
    window: int | None = None
    softcap: float | None = None
    scale: float | None = None

    @property
    def inner(self) -> int:
        """Width of all queries."""
        return self.heads * self.head_dim

    @property
    def inner_kv(self) -> int:
        """Width of all keys, and of all values."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True)
class MlpConfig:
    """Feed-forward layer: down(act(gate(x)) * up(x)) where gated (SwiGLU, arXiv 2002.05202), else down(act(up(x)))."""

    hidden: int
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    bias: bool = False
    gated: bool = True


@dataclass(frozen=True)
class LayerConfig:
    """One block: attention and feed-forward layer, each around a residual.

    Attributes:
        order: where norms are: "pre" x + f(norm(x)); "post" x + norm(f(x)) (OLMo 2); "sandwich" x + norm(f(norm(x)))
            (Gemma 2); "parallel" x + attention(norm(x)) + mlp(norm'(x)) (GPT-NeoX, arXiv 2204.06745).
    """

    attention: AttentionConfig
    mlp: MlpConfig
    order: Literal["pre", "post", "sandwich", "parallel"] = "pre"

    def shapes(self, d_model: int, norm: NormConfig) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the block's parameters."""
        attention, mlp = self.attention, self.mlp
        found: dict[str, tuple[int, ...]] = {}

        def normed(name: str, size: int) -> None:
            found[f"{name}.weight"] = (size,)
            if norm.bias:
                found[f"{name}.bias"] = (size,)

        def linear(name: str, size: int, inputs: int, bias: bool) -> None:
            found[f"{name}.weight"] = (size, inputs)
            if bias:
                found[f"{name}.bias"] = (size,)

        for part in ("attention", "mlp"):
            if self.order != "post":
                normed(f"{part}_norm", d_model)
            if self.order in ("post", "sandwich"):
                normed(f"{part}_post_norm", d_model)
        for name, size in (("q", attention.inner), ("k", attention.inner_kv), ("v", attention.inner_kv)):
            linear(f"attention.{name}", size, d_model, attention.bias)
        linear("attention.o", d_model, attention.inner, attention.out_bias)
        if attention.qk_norm is not None:
            whole = attention.qk_norm == "whole"
            normed("attention.q_norm", attention.inner if whole else attention.head_dim)
            normed("attention.k_norm", attention.inner_kv if whole else attention.head_dim)
        for name in ("gate", "up") if mlp.gated else ("up",):
            linear(f"mlp.{name}", mlp.hidden, d_model, mlp.bias)
        linear("mlp.down", d_model, mlp.hidden, mlp.bias)
        return found


@dataclass(frozen=True)
class InitConfig:
    """How fresh weights are drawn. Of no account once a model is trained, and not kept with it.

    Attributes:
        matrices: standard deviation of the matrices of the blocks; None is 1 / sqrt(inputs), which keeps the scale of
            what goes through whatever the width.
        outputs: factor on the two matrices of a block that write to the residual stream. 0 makes every block begin as
            the identity; 1 / sqrt(2 * layers) is GPT-2's rule.
        embedding, head: standard deviations; a tied head is the embedding.
    """

    matrices: float | None = None
    outputs: float = 0.0
    embedding: float = 0.02
    head: float = 0.02


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer.

    Attributes:
        family: the family file that made it; maps it back to Hugging Face.
        vocab_size, d_model: rows and columns of the embedding.
        layers: one entry per block.
        context_length: most positions, in tokens.
        norm: of every norm, those of queries and keys included.
        tied: the output head is the embedding.
        learned_positions: a vector for each position is added to the embedding (GPT-2).
        embed_scale: factor on the embedding.
        softcap: logits l become c tanh(l / c).
        initializer_range: standard deviation of fresh weights where `init` does not say more.
        init: how weights are drawn for pretraining; None: all alike, as the family's own code does.
    """

    family: str
    vocab_size: int
    d_model: int
    layers: tuple[LayerConfig, ...]
    context_length: int
    norm: NormConfig = NormConfig()
    tied: bool = False
    learned_positions: bool = False
    embed_scale: float = 1.0
    softcap: float | None = None
    initializer_range: float = 0.02
    init: InitConfig | None = field(default=None, compare=False)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all parameters, as `pando.model.transformer.Transformer` has them."""
        found: dict[str, tuple[int, ...]] = {"embed.weight": (self.vocab_size, self.d_model)}
        if self.learned_positions:
            found["positions.weight"] = (self.context_length, self.d_model)
        for i, layer in enumerate(self.layers):
            own = layer.shapes(self.d_model, self.norm)
            found |= {f"layers.{i}.{name}": shape for name, shape in own.items()}
        found["norm.weight"] = (self.d_model,)
        if self.norm.bias:
            found["norm.bias"] = (self.d_model,)
        if not self.tied:
            found["unembed.weight"] = (self.vocab_size, self.d_model)
        return found

    @property
    def parameters(self) -> int:
        """Number of weights, the tied head counted once."""
        return sum(map(math.prod, self.shapes().values()))

    @property
    def head_flops(self) -> int:
        """Forward FLOPs of the output head, a token."""
        return 2 * self.vocab_size * self.d_model

    def flops(self, tokens: int, context: int = 0) -> int:
        """Forward FLOPs of `tokens` new tokens after `context` cached ones, head excluded (a multiply-add is two)."""
        total = 0
        for layer in self.layers:
            attention = layer.attention
            total += 2 * tokens * self._matrix_weights(layer)
            total += 4 * _pairs(tokens, context, attention.window) * attention.inner
        return total

    def cache_bytes(self, bytes_per_number: int) -> int:
        """Bytes of keys and values kept for one token."""
        return sum(2 * layer.attention.inner_kv for layer in self.layers) * bytes_per_number

    def _matrix_weights(self, layer: LayerConfig) -> int:
        shapes = layer.shapes(self.d_model, self.norm).values()
        return sum(math.prod(shape) for shape in shapes if len(shape) == 2)


def _pairs(tokens: int, context: int, window: int | None) -> int:
    """How many (query, key) pairs `tokens` new tokens after `context` old ones see."""
    whole = tokens * context + tokens * (tokens + 1) // 2
    if window is None:
        return whole
    hidden = max(0, context + tokens - window)  # keys that the last token does not see; each one before it, one less
    first = max(0, context + 1 - window)
    return whole - (hidden * (hidden + 1) - first * (first - 1)) // 2 if hidden else whole
