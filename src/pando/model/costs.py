"""What a model's work costs, from its config alone: FLOPs (a multiply-add is two) and bytes of cache."""

from __future__ import annotations

import math

from pando.model.config import AttentionConfig, LayerConfig, ModelConfig

_OF_SOURCE = ("cross.k.weight", "cross.v.weight")  # work on the encoder's tokens, not on the decoder's


def head_flops(config: ModelConfig) -> int:
    """Forward FLOPs of the output head, a token."""
    if not config.predicts:
        return 0
    return 2 * config.d_model * (config.vocab_size + (config.d_model if config.head is not None else 0))


def matrix_flops(config: ModelConfig) -> int:
    """Forward FLOPs of the blocks' matrices, a token; of an encoder-decoder, those of its decoder."""
    return 2 * sum(_matrix_weights(layer, config) for layer in config.layers)


def source_matrix_flops(config: ModelConfig) -> int:
    """Forward FLOPs of the matrices that a token of an encoder-decoder's input meets: the encoder's, and the decoder's
    that make keys and values of it. 0 where there is no encoder."""
    if config.encoder is None:
        return 0
    shapes = (shape for layer in config.layers for shape in layer.shapes(config.d_model, config.norm).items())
    return matrix_flops(config.encoder) + 2 * sum(math.prod(size) for name, size in shapes if name in _OF_SOURCE)


def flops(config: ModelConfig, tokens: int, context: int = 0, *, cached: bool = True, source: int = 0) -> int:
    """Forward FLOPs of `tokens` new tokens after `context` cached ones, head excluded.

    Args:
        cached: keys and values are kept, so that latent attention works on latent vectors (see
            `pando.model.layers.LatentAttention`).
        source: tokens of the encoder's input, which the new ones look at; what it takes to encode them is
            `source_flops`.
    """
    total = tokens * matrix_flops(config)
    for layer in config.layers:
        pairs = _pairs(tokens, context, layer.attention.window)
        if config.both_ways:
            pairs = 2 * pairs - tokens
        total += 4 * pairs * _width(layer.attention, cached)
        if layer.cross is not None:
            total += 4 * tokens * source * layer.cross.inner
    return total


def source_flops(config: ModelConfig, tokens: int) -> int:
    """Forward FLOPs of an encoder-decoder's input of so many tokens, up to the keys and values that are kept of it."""
    if config.encoder is None:
        return 0
    attention = flops(config.encoder, tokens) - tokens * matrix_flops(config.encoder)
    return tokens * source_matrix_flops(config) + attention


def cache_bytes(config: ModelConfig, bytes_per_number: int) -> int:
    """Bytes of keys and values kept for one token."""
    return bytes_per_number * sum(_numbers(layer.attention) for layer in config.layers)


def source_cache_bytes(config: ModelConfig, bytes_per_number: int) -> int:
    """Bytes of keys and values kept for one token of an encoder-decoder's input; 0 where there is no encoder."""
    return bytes_per_number * sum(_numbers(layer.cross) for layer in config.layers if layer.cross is not None)


def _numbers(attention: AttentionConfig) -> int:
    heads, key, value = attention.cached
    return heads * (key + value)


def _width(attention: AttentionConfig, cached: bool) -> int:
    """Of the scores, and then of what is summed up: half of both together."""
    latent = attention.latent
    if latent is None:
        return attention.inner
    own = attention.head_dim + latent.value_dim
    return attention.heads * (2 * latent.rank + latent.rope_dim if cached else own) // 2


def _matrix_weights(layer: LayerConfig, config: ModelConfig) -> int:
    """Of the matrices that one token is multiplied with."""
    shapes = layer.shapes(config.d_model, config.norm).items()
    there = sum(math.prod(shape) for name, shape in shapes if len(shape) > 1 and name not in _OF_SOURCE)
    return there - layer.idle_weights(config.d_model)


def _pairs(tokens: int, context: int, window: int | None) -> int:
    """How many (query, key) pairs `tokens` new tokens after `context` old ones see."""
    whole = tokens * context + tokens * (tokens + 1) // 2
    if window is None:
        return whole
    hidden = max(0, context + tokens - window)  # keys that the last token does not see; each one before it, one less
    first = max(0, context + 1 - window)
    return whole - (hidden * (hidden + 1) - first * (first - 1)) // 2 if hidden else whole
