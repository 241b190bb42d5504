"""The starcoder2 family (StarCoder2): LayerNorm, a plain feed-forward layer, biases, mostly a sliding window.

Paper: arXiv 2402.19173. Not covered: dropout, quantised weights.
"""

from __future__ import annotations

from typing import Any

from pando.model.config import LayerConfig, ModelConfig, NormConfig
from pando.model.families import Family, Gguf
from pando.model.families.decoder import HF_ENDS, HF_SITES, finish, names, read_shape, read_window, write_decoder
from pando.model.families.decoder_gguf import gguf_names, read_gguf_as_hf
from pando.model.families.reading import Switches, read_rope

_SITES = HF_SITES | {"mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}


def _config(hf: dict[str, Any]) -> ModelConfig:
    switches = Switches({"hidden_act": "gelu_pytorch_tanh", "num_key_value_heads": 2} | hf)
    switches.ignore("residual_dropout", "embedding_dropout", "mlp_type")  # of training; what the family has anyway
    switches.only("norm_type", "layer_norm")
    shape = read_shape(switches, 4096)
    rope = read_rope(switches, shape.head_dim, shape.context_length)
    window = read_window(switches)
    bias = switches.flag("use_bias", True)
    attention = shape.attention(rope, bias=bias, out_bias=bias, window=window)
    layer = LayerConfig(attention, shape.mlp(bias=bias, gated=False))
    norm = NormConfig("layer", switches.number("norm_epsilon", 1e-5), bias=True)
    tied = switches.flag("tie_word_embeddings", True)
    return finish(switches, "starcoder2", shape, (layer,) * shape.depth, norm, tied=tied)


def _hf_config(config: ModelConfig) -> dict[str, Any]:
    attention = config.layers[0].attention
    switches: dict[str, Any] = {"use_bias": attention.bias, "sliding_window": attention.window}
    switches |= {"residual_dropout": 0.0, "embedding_dropout": 0.0}
    written = write_decoder(config, "Starcoder2ForCausalLM", **switches)
    written["norm_epsilon"] = written.pop("rms_norm_eps")
    return written


def _gguf_config(switches: Switches) -> ModelConfig:
    hf = read_gguf_as_hf(switches, "starcoder2")
    hf["norm_epsilon"] = hf.pop("rms_norm_eps")
    return _config(hf)


FAMILY = Family(
    name="starcoder2",
    config=_config,
    hf_config=_hf_config,
    keys=lambda config: names(config, _SITES, HF_ENDS, "model.layers.{}"),
    gguf=Gguf("starcoder2", _gguf_config, None, gguf_names),
)
