"""The mistral family (Mistral, Codestral, Ministral): the llama block, in older versions with a sliding window.

Paper: arXiv 2310.06825. Not covered: dropout, quantised weights.
"""

from __future__ import annotations

from typing import Any

from pando.model.config import LayerConfig, ModelConfig, NormConfig
from pando.model.families import Family
from pando.model.families.decoder import finish, hf_names, read_shape, read_window, write_decoder
from pando.model.families.reading import Switches, read_rope


def _config(hf: dict[str, Any]) -> ModelConfig:
    switches = Switches({"num_key_value_heads": 8} | hf)
    shape = read_shape(switches, 131_072)
    rope = read_rope(switches, shape.head_dim, shape.context_length)
    window = read_window(switches, 4096)
    layer = LayerConfig(shape.attention(rope, window=window), shape.mlp())
    norm = NormConfig(eps=switches.number("rms_norm_eps", 1e-6))
    tied = switches.flag("tie_word_embeddings", False)
    return finish(switches, "mistral", shape, (layer,) * shape.depth, norm, tied=tied)


def _hf_config(config: ModelConfig) -> dict[str, Any]:
    return write_decoder(config, "MistralForCausalLM", sliding_window=config.layers[0].attention.window)


FAMILY = Family(name="mistral", config=_config, hf_config=_hf_config, keys=hf_names, mixture="mixtral")
