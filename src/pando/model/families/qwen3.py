"""The qwen3 family (dense Qwen3): the llama block with a norm on the queries and keys of each head.

Paper: arXiv 2505.09388. Not covered: dropout, quantised weights.
"""

from __future__ import annotations

from typing import Any

from pando.model.config import LayerConfig, ModelConfig, NormConfig
from pando.model.families import Family, Gguf
from pando.model.families.decoder import finish, fresh_decoder, hf_names, read_shape, write_decoder
from pando.model.families.decoder_gguf import gguf_names, read_gguf_decoder, write_gguf_decoder
from pando.model.families.qwen2 import read_upper_windows, write_upper_windows
from pando.model.families.reading import Switches, read_rope

_HEAD_DIM = 128  # what Qwen3 takes where the config does not say, whatever the width


def _config(hf: dict[str, Any]) -> ModelConfig:
    switches = Switches(hf | {"head_dim": hf.get("head_dim") or _HEAD_DIM})
    shape = read_shape(switches, 32_768)
    rope = read_rope(switches, shape.head_dim, shape.context_length)
    bias = switches.flag("attention_bias", False)
    layers = [
        LayerConfig(shape.attention(rope, bias=bias, out_bias=bias, qk_norm="head", window=window), shape.mlp())
        for window in read_upper_windows(switches, shape.depth)
    ]
    norm = NormConfig(eps=switches.number("rms_norm_eps", 1e-6))
    return finish(switches, "qwen3", shape, layers, norm, tied=switches.flag("tie_word_embeddings", False))


def _hf_config(config: ModelConfig) -> dict[str, Any]:
    bias = config.layers[0].attention.bias
    return write_decoder(config, "Qwen3ForCausalLM", attention_bias=bias) | write_upper_windows(config)


FAMILY = Family(
    name="qwen3",
    config=_config,
    hf_config=_hf_config,
    keys=hf_names,
    mixture="qwen3_moe",
    fresh=fresh_decoder("qwen3", qk_norm="head"),
    gguf=Gguf("qwen3", lambda s: read_gguf_decoder(s, "qwen3", qk_norm="head"), write_gguf_decoder, gguf_names),
)
