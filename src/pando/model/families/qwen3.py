"""The qwen3 family (dense Qwen3): the llama block with a norm on the queries and keys of each head.

Paper: arXiv 2505.09388. Not covered: sliding windows, dropout, quantised weights.
"""

from __future__ import annotations

from typing import Any

from pando.model.config import ModelConfig
from pando.model.families import Family, Gguf
from pando.model.families.decoder import (
    gguf_names,
    hf_names,
    read_decoder,
    read_gguf_decoder,
    write_decoder,
    write_gguf_decoder,
)
from pando.model.families.reading import Switches

_HEAD_DIM = 128  # what Qwen3 takes where the config does not say, whatever the width


def _config(hf: dict[str, Any]) -> ModelConfig:
    switches = Switches({"head_dim": _HEAD_DIM} | {key: value for key, value in hf.items() if value is not None})
    switches.only("use_sliding_window", False)
    switches.ignore("sliding_window", "max_window_layers")  # of no account without the switch above
    switches.each("layer_types", "full_attention")
    return read_decoder(switches, "qwen3", qk_norm=True, mlp_bias=False)


def _hf_config(config: ModelConfig) -> dict[str, Any]:
    layers = len(config.layers)
    windows = {"use_sliding_window": False, "sliding_window": None, "max_window_layers": layers}
    return (
        write_decoder(config, "Qwen3ForCausalLM", mlp_bias=False)
        | windows
        | {"layer_types": ["full_attention"] * layers}
    )


FAMILY = Family(
    name="qwen3",
    config=_config,
    hf_config=_hf_config,
    keys=hf_names,
    gguf=Gguf("qwen3", lambda s: read_gguf_decoder(s, "qwen3", qk_norm=True), write_gguf_decoder, gguf_names),
)
