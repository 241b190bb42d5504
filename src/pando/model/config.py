"""The shape of a transformer, as small frozen dataclasses. A family file makes one from a Hugging Face config.

Every number that costs something (parameters, FLOPs, cache bytes) is computed here, so that a base can be judged
from its config alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

EXACT = "router.bias"  # ends the names of parameters that stay float32: balancing moves it by less than bfloat16 tells

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]


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
    """Rotary positions (arXiv 2104.09864) over the first `dim` dimensions of each head.

    Attributes:
        interleaved: what is turned together lies at (2i, 2i + 1) and not at (i, i + dim/2).
    """

    dim: int
    theta: float = 10_000.0
    scaling: RopeScaling | None = None
    interleaved: bool = False


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
class LatentConfig:
    """Keys and values as projections of one short vector a token, which is all that a cache keeps (multi-head latent
    attention, DeepSeek-V2, arXiv 2405.04434).

    Attributes:
        rank: numbers of the latent vector.
        rope_dim: numbers of the one key a token that has positions; all heads share it.
        value_dim: of each head.
        q_rank: queries are projected from a vector of so many numbers; None: from the token itself.
        eps: of the norms of both vectors, whatever that of the others is.
    """

    rank: int
    rope_dim: int
    value_dim: int
    q_rank: int | None = None
    eps: float = 1e-6


@dataclass(frozen=True)
class RelativeConfig:
    """A number for each head and distance, added to the scores of every layer of a stack (T5, arXiv 1910.10683, 2.1).

    Attributes:
        buckets: distances that are told apart, of both directions together where a stack sees both ways.
        furthest: from this distance on they are all the same; up to half of the buckets of a direction, each its own.
    """

    buckets: int = 32
    furthest: int = 128


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
        latent: how keys and values are compressed; `head_dim` is then the width of a whole key.
        relative: what distances add to the scores; the same table serves all layers of a stack.
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
    latent: LatentConfig | None = None
    relative: RelativeConfig | None = None

    @property
    def cached(self) -> tuple[int, int, int]:
        """Key heads, width of a key, and of a value (0: it is the beginning of the key), as a cache keeps them."""
        if self.latent is None:
            return self.kv_heads, self.head_dim, self.head_dim
        return 1, self.latent.rank + self.latent.rope_dim, 0

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
    activation: Activation = "silu"
    bias: bool = False
    gated: bool = True


@dataclass(frozen=True)
class RouterConfig:
    """Which experts a token goes to, and how much each counts (arXiv 2401.04088, 2405.04434, 2412.19437).

    Attributes:
        top_k: experts of a token.
        scores: "softmax" over all experts, or each expert's own "sigmoid".
        normalise: the chosen scores are divided by their sum.
        scale: factor on them.
        bias: whether each expert has a bias that counts for the choice alone; balancing moves it (arXiv 2408.15664).
        groups, top_groups: experts stand in `groups`, of which a token's may come from so many.
        best: how many of a group's scores add up to its own.
    """

    top_k: int
    scores: Literal["softmax", "sigmoid"] = "softmax"
    normalise: bool = True
    scale: float = 1.0
    bias: bool = False
    groups: int = 1
    top_groups: int = 1
    best: int = 1


@dataclass(frozen=True)
class ExpertsConfig:
    """A mixture of experts in place of the feed-forward layer (arXiv 2101.03961): `count` gated ones of `hidden`.

    Attributes:
        shared: width of a further one that every token goes through; 0: there is none.
        shared_gate: what that one says is multiplied by a sigmoid of the token.
    """

    count: int
    hidden: int
    router: RouterConfig
    activation: Activation = "silu"
    shared: int = 0
    shared_gate: bool = False

    @property
    def shared_mlp(self) -> MlpConfig:
        """The shared expert as a feed-forward layer."""
        return MlpConfig(self.shared, self.activation)


@dataclass(frozen=True)
class LayerConfig:
    """One block: attention and feed-forward layer, each around a residual.

    Attributes:
        order: where norms are: "pre" x + f(norm(x)); "post" x + norm(f(x)) (OLMo 2); "sandwich" x + norm(f(norm(x)))
            (Gemma 2); "parallel" x + attention(norm(x)) + mlp(norm'(x)) (GPT-NeoX, arXiv 2204.06745); "after"
            norm(x + f(x)) (the first transformer, arXiv 1706.03762, and BERT).
        attention_norm: whether there is one before attention, where `order` has it (the first layer of ModernBERT has
            none: what comes in is normed already).
        cross: attention over what an encoder made of its input, between the two ("pre" and "after" only).
    """

    attention: AttentionConfig
    mlp: MlpConfig | ExpertsConfig
    order: Literal["pre", "post", "sandwich", "parallel", "after"] = "pre"
    attention_norm: bool = True
    cross: AttentionConfig | None = None

    @property
    def norms(self) -> dict[str, bool]:
        """Which of a block's norms there are."""
        before, after = self.order in ("pre", "sandwich", "parallel"), self.order in ("post", "sandwich", "after")
        return {
            "attention_norm": before and self.attention_norm,
            "attention_post_norm": after,
            "cross_norm": before and self.cross is not None,
            "cross_post_norm": after and self.cross is not None,
            "mlp_norm": before,
            "mlp_post_norm": after,
        }

    def shapes(self, d_model: int, norm: NormConfig) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the block's parameters."""
        from pando.model.shapes import layer_shapes

        return layer_shapes(self, d_model, norm)

    def idle_weights(self, d_model: int) -> int:
        """Weights of the experts that a token does not go to."""
        if not isinstance(self.mlp, ExpertsConfig):
            return 0
        return (self.mlp.count - self.mlp.router.top_k) * 3 * self.mlp.hidden * d_model


@dataclass(frozen=True)
class HeadConfig:
    """What an encoder does before it predicts masked tokens: norm(act(dense(x))), and then a bias on the logits.

    Attributes:
        dense_bias: whether the dense layer has one. bias: whether the logits have.
    """

    activation: Activation = "gelu"
    dense_bias: bool = True
    bias: bool = True


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
    """A stack of blocks: a decoder, an encoder (`both_ways`), or a decoder that looks at an `encoder`.

    Attributes:
        family: the family file that made it; maps it back to Hugging Face.
        vocab_size, d_model: rows and columns of the embedding.
        layers: one entry per block.
        context_length: most positions, in tokens.
        norm: of every norm, those of queries and keys included.
        tied: the output head is the embedding.
        learned_positions: a vector for each position is added to the embedding (GPT-2).
        position_offset: of the first position in their table (RoBERTa begins at 2).
        token_types: kinds of tokens that have a vector each, which is added too (BERT): of the second text of a pair
            the second, of all others the first.
        embed_norm: whether the sum of these is normed.
        final_norm: whether there is a norm after the last block.
        both_ways: tokens see those after them as well.
        head: of an encoder, or None.
        predicts: whether there is an output head; sentence encoders are kept without.
        judges: whether a head says of a pair of texts how well the second answers the first: out(tanh(dense(x))) of the
            first token's state x (cross-encoders, arXiv 1901.04085).
        embed_scale: factor on the embedding.
        softcap: logits l become c tanh(l / c).
        head_scale: factor on what the head is given.
        encoder: the stack that reads the input, with this one's embedding and width; it has no head.
        start_token: what a decoder with an encoder begins with.
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
    position_offset: int = 0
    token_types: int = 0
    embed_norm: bool = False
    final_norm: bool = True
    both_ways: bool = False
    head: HeadConfig | None = None
    predicts: bool = True
    judges: bool = False
    embed_scale: float = 1.0
    softcap: float | None = None
    head_scale: float = 1.0
    encoder: ModelConfig | None = None
    start_token: int = 0
    initializer_range: float = 0.02
    init: InitConfig | None = field(default=None, compare=False)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all parameters, as `pando.model.transformer.Transformer` has them."""
        from pando.model.shapes import model_shapes

        return model_shapes(self)

    @property
    def parameters(self) -> int:
        """Number of weights, the tied head counted once."""
        return sum(map(math.prod, self.shapes().values()))

    @property
    def active_parameters(self) -> int:
        """Weights that one token is computed with: all but those of the experts that it does not go to."""
        return self.parameters - sum(layer.idle_weights(self.d_model) for layer in self.layers)

    @property
    def causal(self) -> bool:
        """Whether it tells how likely a text is, token by token."""
        return self.encoder is None and not self.both_ways

    @property
    def stacks(self) -> tuple[ModelConfig, ...]:
        """Encoder, if there is one, and decoder; or the one stack that there is."""
        return (self,) if self.encoder is None else (self.encoder, self)
