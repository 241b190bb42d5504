"""The gpt2 family (GPT-2): LayerNorm, learned positions, biases everywhere, matrices kept transposed.

Paper: Radford et al. 2019, "Language models are unsupervised multitask learners". Not covered: cross-attention, scores
scaled by layer, dropout, quantised weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pando.model.config import LayerConfig, ModelConfig, NormConfig
from pando.model.families import Family, Gguf, Packed
from pando.model.families.decoder import finish, names, packed, read_shape
from pando.model.families.decoder_gguf import gguf_sites, read_gguf_as_hf
from pando.model.families.reading import Switches

_CALLED = {
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "max_position_embeddings": "n_positions",
    "intermediate_size": "n_inner",
    "hidden_act": "activation_function",
}
_SITES = {"attention_norm": "ln_1", "mlp_norm": "ln_2"}
_ENDS = {
    "embed": "transformer.wte",
    "positions": "transformer.wpe",
    "norm": "transformer.ln_f",
    "unembed": "lm_head",
}
_FUSED = {
    "attn.c_attn": ("attention.q", "attention.k", "attention.v"),
    "attn.c_proj": ("attention.o",),
    "mlp.c_fc": ("mlp.up",),
    "mlp.c_proj": ("mlp.down",),
}
_LAYERS = "transformer.h.{}"


def _config(hf: dict[str, Any]) -> ModelConfig:
    switches = Switches({"activation_function": "gelu_new"} | hf, called=_CALLED)
    switches.ignore("resid_pdrop", "embd_pdrop", "attn_pdrop")  # of training
    switches.ignore("n_ctx", "reorder_and_upcast_attn", "task_specific_params")  # old names, precision, examples
    switches.ignore(*(key for key in hf if key.startswith("summary_")))  # of a head that is not this one
    switches.only("scale_attn_weights", True)
    shape = read_shape(switches, 1024, usual_hidden=4)
    layer = LayerConfig(shape.attention(None, bias=True, out_bias=True), shape.mlp(bias=True, gated=False))
    norm = NormConfig("layer", switches.number("layer_norm_epsilon", 1e-5), bias=True)
    more = {"tied": switches.flag("tie_word_embeddings", True), "learned_positions": True}
    return finish(switches, "gpt2", shape, (layer,) * shape.depth, norm, **more)


def _hf_config(config: ModelConfig) -> dict[str, Any]:
    layer = config.layers[0]
    activation = {"gelu_tanh": "gelu_new"}.get(layer.mlp.activation, layer.mlp.activation)
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_embd": config.d_model,
        "n_head": layer.attention.heads,
        "n_layer": len(config.layers),
        "n_positions": config.context_length,
        "n_inner": layer.mlp.hidden,
        "activation_function": activation,
        "layer_norm_epsilon": config.norm.eps,
        "tie_word_embeddings": config.tied,
        "initializer_range": config.initializer_range,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    }


def _packed(config: ModelConfig) -> Iterator[Packed]:
    for one in packed(config, _LAYERS, _FUSED):
        yield Packed(one.theirs, one.ours, transposed=one.theirs.endswith("weight"))


def _gguf_config(switches: Switches) -> ModelConfig:
    hf = read_gguf_as_hf(switches, "gpt2")
    for other in ("num_key_value_heads", "head_dim"):
        hf.pop(other)
    hf["layer_norm_epsilon"] = hf.pop("rms_norm_eps")
    return _config({_CALLED.get(key, key): value for key, value in hf.items()})


def _gguf_names(config: ModelConfig) -> Iterator[tuple[str, str]]:
    return gguf_sites(config, {}, _FUSED["attn.c_attn"])


def _gguf_packed(config: ModelConfig) -> Iterator[Packed]:
    return packed(config, "blk.{}", {"attn_qkv": _FUSED["attn.c_attn"]})


FAMILY = Family(
    name="gpt2",
    config=_config,
    hf_config=_hf_config,
    keys=lambda config: names(config, _SITES, _ENDS, _LAYERS),
    packed=_packed,
    prefix="transformer.",
    gguf=Gguf("gpt2", _gguf_config, None, _gguf_names, _gguf_packed),
    ignored=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),
)
