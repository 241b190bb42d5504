"""The qwen2 family (Qwen 2 and 2.5): the llama block with biases on queries, keys and values.

Papers: arXiv 2407.10671, 2412.15115. Not covered: dropout, quantised weights.
"""

from __future__ import annotations

from typing import Any

from pando.model.config import LayerConfig, ModelConfig, NormConfig
from pando.model.families import Family, Gguf
from pando.model.families.decoder import finish, hf_names, read_shape, read_windows, write_decoder, write_windows
from pando.model.families.decoder_gguf import gguf_names, read_gguf_decoder, write_gguf_decoder
from pando.model.families.reading import Switches, read_rope


def read_upper_windows(switches: Switches, depth: int) -> list[int | None]:
    """Windows as Qwen has them: behind a switch, and then in the layers from `max_window_layers` on."""
    if not switches.flag("use_sliding_window", False):
        switches.ignore("sliding_window", "max_window_layers")  # of no account without the switch
        switches.each("layer_types", "full_attention")
        return [None] * depth
    first = switches.integer("max_window_layers", 28)
    return read_windows(switches, depth, lambda layer: layer >= first, 4096)


def write_upper_windows(config: ModelConfig) -> dict[str, Any]:
    """What `read_upper_windows` reads."""
    windows = [layer.attention.window for layer in config.layers]
    first = next((i for i, window in enumerate(windows) if window is not None), len(windows))
    return write_windows(config) | {"use_sliding_window": any(windows), "max_window_layers": max(1, first)}


def _config(hf: dict[str, Any]) -> ModelConfig:
    switches = Switches(hf)
    shape = read_shape(switches, 32_768)
    rope = read_rope(switches, shape.head_dim, shape.context_length)
    layers = [
        LayerConfig(shape.attention(rope, bias=True, window=window), shape.mlp())
        for window in read_upper_windows(switches, shape.depth)
    ]
    norm = NormConfig(eps=switches.number("rms_norm_eps", 1e-6))
    return finish(switches, "qwen2", shape, layers, norm, tied=switches.flag("tie_word_embeddings", False))


FAMILY = Family(
    name="qwen2",
    config=_config,
    hf_config=lambda config: write_decoder(config, "Qwen2ForCausalLM") | write_upper_windows(config),
    keys=hf_names,
    gguf=Gguf(
        "qwen2",
        lambda s: read_gguf_decoder(s, "qwen2", bias=True),
        lambda config: write_gguf_decoder(config, bias=True),
        gguf_names,
    ),
)
