"""The llama family: Llama 1 to 3.x, SmolLM2 and others: pre-norm RMSNorm, rotary positions, grouped-query attention,
SwiGLU, a tied or untied head.

Papers: arXiv 2302.13971, 2307.09288, 2407.21783. Not covered: tensor slices of pretraining (`pretraining_tp` above 1),
dropout, quantised weights, the scalings of rotary positions "dynamic" and "longrope".
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


def _config(hf: dict[str, Any]) -> ModelConfig:
    switches = Switches(hf)
    switches.only("pretraining_tp", 1)
    switches.only("rope_interleaved", False)
    return read_decoder(switches, "llama", qk_norm=False, mlp_bias=True)


def _paired(config: ModelConfig) -> dict[str, int]:
    attention = config.layers[0].attention
    return {"attention.q": attention.heads, "attention.k": attention.kv_heads}


FAMILY = Family(
    name="llama",
    config=_config,
    hf_config=lambda config: write_decoder(config, "LlamaForCausalLM", mlp_bias=True),
    keys=hf_names,
    ignored=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
    gguf=Gguf("llama", lambda s: read_gguf_decoder(s, "llama", qk_norm=False), write_gguf_decoder, gguf_names, _paired),
)
