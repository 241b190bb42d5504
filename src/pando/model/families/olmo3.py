"""The olmo3 family (OLMo 3): OLMo 2 with a sliding window in three layers of four, whose positions are not stretched.

Source: https://allenai.org/papers/olmo3. Not covered: dropout, quantised weights.
"""

from __future__ import annotations

from typing import Any

from pando.model.config import LayerConfig, ModelConfig, NormConfig
from pando.model.families import Family, Gguf
from pando.model.families.decoder import (
    FULL,
    SLIDING,
    finish,
    read_shape,
    read_windows,
    write_decoder,
    write_ropes,
    write_windows,
)
from pando.model.families.decoder_gguf import GGUF_AFTER, gguf_sites, read_gguf_as_hf
from pando.model.families.olmo2 import olmo_names
from pando.model.families.reading import Switches, read_ropes

_THETA = 500_000.0


def _config(hf: dict[str, Any]) -> ModelConfig:
    switches = Switches({"sliding_window": 4096} | hf)
    shape = read_shape(switches)
    kinds = {FULL: ("rope_theta", _THETA), SLIDING: ("rope_theta", _THETA)}
    ropes = read_ropes(switches, shape.head_dim, shape.context_length, kinds)
    bias = switches.flag("attention_bias", False)
    layers = []
    for window in read_windows(switches, shape.depth, lambda layer: (layer + 1) % 4 != 0):
        rope = ropes[FULL if window is None else SLIDING]
        attention = shape.attention(rope, bias=bias, out_bias=bias, qk_norm="whole", window=window)
        layers.append(LayerConfig(attention, shape.mlp(), order="post"))
    norm = NormConfig(eps=switches.number("rms_norm_eps", 1e-5))
    return finish(switches, "olmo3", shape, layers, norm, tied=switches.flag("tie_word_embeddings", False))


def _hf_config(config: ModelConfig) -> dict[str, Any]:
    written = write_decoder(config, "Olmo3ForCausalLM", attention_bias=config.layers[0].attention.bias)
    return written | write_windows(config) | write_ropes(config)


def _gguf_config(switches: Switches) -> ModelConfig:
    hf = read_gguf_as_hf(switches, "olmo3")
    slides = switches.each("attention.sliding_window_pattern", True, False)
    return _config(hf | {"layer_types": [SLIDING if one else FULL for one in slides]} if slides else hf)


_GGUF = Gguf(
    "olmo2", _gguf_config, None, lambda config: gguf_sites(config, GGUF_AFTER), told_by="attention.sliding_window"
)
FAMILY = Family(name="olmo3", config=_config, hf_config=_hf_config, keys=olmo_names, gguf=_GGUF)
