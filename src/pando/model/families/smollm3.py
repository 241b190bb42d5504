"""The smollm3 family (SmolLM3): the llama block, with every fourth layer without positions (NoPE).

Source: https://huggingface.co/blog/smollm3; NoPE: arXiv 2501.18795. Not covered: dropout, quantised weights.
"""

from __future__ import annotations

from typing import Any

from pando.model.config import LayerConfig, MlpConfig, ModelConfig, NormConfig
from pando.model.families import Family, Gguf
from pando.model.families.decoder import finish, hf_names, read_shape, read_windows, write_decoder, write_windows
from pando.model.families.decoder_gguf import gguf_names, paired_heads, read_gguf_as_hf
from pando.model.families.reading import Switches, read_rope

_THETA, _INTERVAL = 2_000_000.0, 4


def _config(hf: dict[str, Any]) -> ModelConfig:
    switches = Switches({"num_key_value_heads": 4} | hf)
    shape = read_shape(switches, 32_768)
    rope = read_rope(switches, shape.head_dim, shape.context_length, _THETA)
    interval = switches.integer("no_rope_layer_interval", _INTERVAL)
    turned = switches.each("no_rope_layers", 0, 1) or [int((i + 1) % interval != 0) for i in range(shape.depth)]
    if len(turned) < shape.depth:
        raise switches.wrong("no_rope_layers", turned, f"{shape.depth} entries")
    switches.ignore("max_window_layers")  # which layers slide is said by layer_types
    slides = switches.flag("use_sliding_window", False)
    windows = read_windows(switches, shape.depth, lambda layer: slides and not turned[layer])
    bias = switches.flag("attention_bias", False)
    mlp = shape.mlp(bias=switches.flag("mlp_bias", False))
    layers = [
        LayerConfig(
            shape.attention(rope if turned[i] else None, bias=bias, out_bias=bias, window=window if slides else None),
            mlp,
        )
        for i, window in enumerate(windows)
    ]
    norm = NormConfig(eps=switches.number("rms_norm_eps", 1e-6))
    return finish(switches, "smollm3", shape, layers, norm, tied=switches.flag("tie_word_embeddings", True))


def _hf_config(config: ModelConfig) -> dict[str, Any]:
    mlp = config.layers[0].mlp
    assert isinstance(mlp, MlpConfig)
    attention = [layer.attention for layer in config.layers]
    switches: dict[str, Any] = {
        "attention_bias": attention[0].bias,
        "mlp_bias": mlp.bias,
        "no_rope_layers": [int(one.rope is not None) for one in attention],
        "use_sliding_window": any(one.window is not None for one in attention),
        "pad_token_id": None,  # where nothing is said transformers takes one that a small vocabulary lacks
    }
    return write_decoder(config, "SmolLM3ForCausalLM", **switches) | write_windows(config)


FAMILY = Family(
    name="smollm3",
    config=_config,
    hf_config=_hf_config,
    keys=hf_names,
    gguf=Gguf("smollm3", lambda s: _config(read_gguf_as_hf(s, "smollm3")), None, gguf_names, paired=paired_heads),
)
