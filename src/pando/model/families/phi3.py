"""The phi3 family (Phi-3, Phi-4): the llama block, kept with fused projections.

Paper: arXiv 2404.14219. Not covered: the scaling of rotary positions "longrope" (versions with a context of 128k),
dropout, quantised weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pando.model.config import LayerConfig, ModelConfig, NormConfig
from pando.model.families import Family, Gguf, Packed
from pando.model.families.decoder import (
    HF_ENDS,
    HF_SITES,
    finish,
    names,
    packed,
    read_shape,
    read_window,
    write_decoder,
)
from pando.model.families.decoder_gguf import gguf_sites, read_gguf_as_hf
from pando.model.families.reading import Switches, read_rope

_FUSED = {
    "self_attn.qkv_proj": ("attention.q", "attention.k", "attention.v"),
    "mlp.gate_up_proj": ("mlp.gate", "mlp.up"),
}
_LAYERS = "model.layers.{}"
_SITES = {site: name for site, name in HF_SITES.items() if all(site not in group for group in _FUSED.values())}


def _config(hf: dict[str, Any]) -> ModelConfig:
    switches = Switches(hf)
    switches.ignore("resid_pdrop", "embd_pdrop", "original_max_position_embeddings")  # of training and "longrope"
    shape = read_shape(switches, 4096)
    rope = read_rope(switches, shape.head_dim, shape.context_length, share=1.0)
    window = read_window(switches)
    switches.only("attention_bias", False)
    layer = LayerConfig(shape.attention(rope, window=window), shape.mlp())
    norm = NormConfig(eps=switches.number("rms_norm_eps", 1e-5))
    tied = switches.flag("tie_word_embeddings", False)
    return finish(switches, "phi3", shape, (layer,) * shape.depth, norm, tied=tied)


def _hf_config(config: ModelConfig) -> dict[str, Any]:
    switches: dict[str, Any] = {
        "original_max_position_embeddings": config.context_length,
        "sliding_window": config.layers[0].attention.window,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "pad_token_id": None,  # where nothing is said transformers takes one that a small vocabulary lacks
    }
    return write_decoder(config, "Phi3ForCausalLM", **switches)


def _packed(config: ModelConfig) -> Iterator[Packed]:
    return packed(config, _LAYERS, _FUSED)


def _gguf_packed(config: ModelConfig) -> Iterator[Packed]:
    attention, mlp = _FUSED.values()
    return packed(config, "blk.{}", {"attn_qkv": attention, "ffn_up": mlp})


def _gguf_names(config: ModelConfig) -> Iterator[tuple[str, str]]:
    return gguf_sites(config, {}, [site for group in _FUSED.values() for site in group])


FAMILY = Family(
    name="phi3",
    config=_config,
    hf_config=_hf_config,
    keys=lambda config: names(config, _SITES, HF_ENDS, _LAYERS),
    packed=_packed,
    gguf=Gguf("phi3", lambda s: _config(read_gguf_as_hf(s, "phi3")), None, _gguf_names, _gguf_packed),
)
