"""The llama family (Llama 1 to 3.x, SmolLM2, DeepSeek-Coder and others): norms before each part, rotary positions,
grouped-query attention, SwiGLU, a tied or untied head.

Papers: arXiv 2302.13971, 2307.09288, 2407.21783. Not covered: dropout, quantised weights, the scalings of rotary
positions "dynamic" and "longrope".
"""

from __future__ import annotations

from typing import Any

from pando.model.config import LayerConfig, MlpConfig, ModelConfig, NormConfig
from pando.model.families import Family, Gguf
from pando.model.families.decoder import finish, fresh_decoder, hf_names, read_shape, write_decoder
from pando.model.families.decoder_gguf import gguf_names, paired_heads, read_gguf_decoder, write_gguf_decoder
from pando.model.families.reading import Switches, read_rope


def _config(hf: dict[str, Any]) -> ModelConfig:
    switches = Switches(hf)
    switches.only("rope_interleaved", False)
    shape = read_shape(switches)
    rope = read_rope(switches, shape.head_dim, shape.context_length)
    bias = switches.flag("attention_bias", False)
    mlp = shape.mlp(bias=switches.flag("mlp_bias", False))
    layer = LayerConfig(shape.attention(rope, bias=bias, out_bias=bias), mlp)
    norm = NormConfig(eps=switches.number("rms_norm_eps", 1e-6))
    tied = switches.flag("tie_word_embeddings", False)
    return finish(switches, "llama", shape, (layer,) * shape.depth, norm, tied=tied)


def _hf_config(config: ModelConfig) -> dict[str, Any]:
    mlp = config.layers[0].mlp
    assert isinstance(mlp, MlpConfig)
    layer = config.layers[0]
    biases: dict[str, Any] = {"attention_bias": layer.attention.bias, "mlp_bias": mlp.bias}
    return write_decoder(config, "LlamaForCausalLM", **biases)


FAMILY = Family(
    name="llama",
    config=_config,
    hf_config=_hf_config,
    keys=hf_names,
    mixture="mixtral",
    fresh=fresh_decoder("llama"),
    ignored=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
    gguf=Gguf("llama", lambda s: read_gguf_decoder(s, "llama"), write_gguf_decoder, gguf_names, paired=paired_heads),
)
