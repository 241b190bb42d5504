"""The olmo2 family (OLMo 2): norms after attention and feed-forward layer, and on all queries and keys as a whole.

Paper: arXiv 2501.00656. Not covered: dropout, quantised weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pando.model.config import LayerConfig, ModelConfig, NormConfig
from pando.model.families import Family, Gguf
from pando.model.families.decoder import HF_ENDS, HF_SITES, finish, names, read_shape, write_decoder
from pando.model.families.decoder_gguf import GGUF_AFTER, gguf_sites, read_gguf_as_hf
from pando.model.families.reading import Switches, read_rope

_SITES = HF_SITES | {
    "attention_post_norm": "post_attention_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}


def olmo_names(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """(our parameter name, Hugging Face key)."""
    return names(config, _SITES, HF_ENDS, "model.layers.{}")


def _config(hf: dict[str, Any]) -> ModelConfig:
    switches = Switches(hf)
    shape = read_shape(switches)
    rope = read_rope(switches, shape.head_dim, shape.context_length)
    bias = switches.flag("attention_bias", False)
    attention = shape.attention(rope, bias=bias, out_bias=bias, qk_norm="whole")
    layer = LayerConfig(attention, shape.mlp(), order="post")
    norm = NormConfig(eps=switches.number("rms_norm_eps", 1e-5))
    tied = switches.flag("tie_word_embeddings", False)
    return finish(switches, "olmo2", shape, (layer,) * shape.depth, norm, tied=tied)


def _hf_config(config: ModelConfig) -> dict[str, Any]:
    return write_decoder(config, "Olmo2ForCausalLM", attention_bias=config.layers[0].attention.bias)


_GGUF = Gguf(
    "olmo2", lambda s: _config(read_gguf_as_hf(s, "olmo2")), None, lambda config: gguf_sites(config, GGUF_AFTER)
)
FAMILY = Family(name="olmo2", config=_config, hf_config=_hf_config, keys=olmo_names, gguf=_GGUF)
