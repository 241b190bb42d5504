"""The shape of a transformer, as small frozen dataclasses. A family file makes one from a Hugging Face config.

Every number that costs something (parameters, FLOPs, cache bytes) is computed here, so that a base can be judged
from its config alone.
"""

from __future__ import annotations

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
class AttentionConfig:
    """Grouped-query attention (arXiv 2305.13245): `heads` queries share `kv_heads` keys and values.

    `qk_norm`: queries and keys are brought to unit mean square, head by head, before they are rotated (arXiv
    2010.04245 in the form of Qwen3, arXiv 2505.09388).
    """

    heads: int
    kv_heads: int
    head_dim: int
    rope: RopeConfig
    bias: bool = False
    qk_norm: bool = False


@dataclass(frozen=True)
class MlpConfig:
    """Gated feed-forward layer: down(act(gate(x)) * up(x)) (SwiGLU, arXiv 2002.05202)."""

    hidden: int
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    bias: bool = False


@dataclass(frozen=True)
class LayerConfig:
    """One block: attention and feed-forward layer, each after a norm and around a residual."""

    attention: AttentionConfig
    mlp: MlpConfig


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
        norm_eps: epsilon of every RMSNorm.
        tied: the output head is the embedding.
        initializer_range: standard deviation of fresh weights where `init` does not say more.
        init: how weights are drawn for pretraining; None: all alike, as the family's own code does.
    """

    family: str
    vocab_size: int
    d_model: int
    layers: tuple[LayerConfig, ...]
    context_length: int
    norm_eps: float = 1e-5
    tied: bool = False
    initializer_range: float = 0.02
    init: InitConfig | None = field(default=None, compare=False)

    @property
    def parameters(self) -> int:
        """Number of weights, the tied head counted once."""
        embeddings = self.vocab_size * self.d_model * (1 if self.tied else 2)
        norms = self.d_model * (2 * len(self.layers) + 1)
        norms += sum(2 * layer.attention.head_dim for layer in self.layers if layer.attention.qk_norm)
        biases = sum(self._biases(layer) for layer in self.layers)
        return embeddings + norms + biases + sum(map(self._matrix_weights, self.layers))

    @property
    def head_flops(self) -> int:
        """Forward FLOPs of the output head, a token."""
        return 2 * self.vocab_size * self.d_model

    def flops(self, tokens: int, context: int = 0) -> int:
        """Forward FLOPs of `tokens` new tokens after `context` cached ones, head excluded (a multiply-add is two)."""
        total = 0
        pairs = tokens * context + tokens * (tokens + 1) // 2
        for layer in self.layers:
            attention = layer.attention
            total += 2 * tokens * self._matrix_weights(layer)
            total += 4 * pairs * attention.heads * attention.head_dim
        return total

    def cache_bytes(self, bytes_per_number: int) -> int:
        """Bytes of keys and values kept for one token."""
        return sum(2 * layer.attention.kv_heads * layer.attention.head_dim for layer in self.layers) * bytes_per_number

    def _matrix_weights(self, layer: LayerConfig) -> int:
        attention, mlp = layer.attention, layer.mlp
        projections = self.d_model * attention.head_dim * 2 * (attention.heads + attention.kv_heads)
        return projections + 3 * self.d_model * mlp.hidden

    def _biases(self, layer: LayerConfig) -> int:
        attention, mlp = layer.attention, layer.mlp
        count = 0
        if attention.bias:
            count += attention.head_dim * (attention.heads + 2 * attention.kv_heads) + self.d_model
        if mlp.bias:
            count += 2 * mlp.hidden + self.d_model
        return count
