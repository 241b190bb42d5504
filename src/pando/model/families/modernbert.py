"""The modernbert family (ModernBERT): an encoder with norms before each part, rotary positions, gated GELU, two local
layers to a global one.

Paper: arXiv 2412.13663. Not covered: classification heads, dropout, quantised weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pando.model.config import HeadConfig, LayerConfig, ModelConfig, NormConfig, RopeConfig
from pando.model.families import Family, Gguf, Packed
from pando.model.families.decoder import (
    ACTIVATIONS,
    FULL,
    HF_ACTIVATIONS,
    SLIDING,
    Shape,
    finish,
    names,
    packed,
    read_shape,
    read_windows,
    write_decoder,
    write_ropes,
    write_windows,
)
from pando.model.families.decoder_gguf import read_gguf_as_hf
from pando.model.families.reading import Switches, architectures, read_ropes

_SITES = {"attention_norm": "attn_norm", "attention.o": "attn.Wo", "mlp_norm": "mlp_norm", "mlp.down": "mlp.Wo"}
_ENDS = {
    "embed": "model.embeddings.tok_embeddings",
    "embed_norm": "model.embeddings.norm",
    "norm": "model.final_norm",
    "head_dense": "head.dense",
    "head_norm": "head.norm",
    "unembed": "decoder",
}
_FUSED = {"attn.Wqkv": ("attention.q", "attention.k", "attention.v"), "mlp.Wi": ("mlp.gate", "mlp.up")}
_LAYERS = "model.layers.{}"
_GGUF_SITES = {
    "attention_norm": "attn_norm",
    "attention.o": "attn_output",
    "mlp_norm": "ffn_norm",
    "mlp.down": "ffn_down",
}
_GGUF_ENDS = {"embed": "token_embd", "embed_norm": "token_embd_norm", "norm": "output_norm"}
_GGUF_FUSED = dict(zip(("attn_qkv", "ffn_up"), _FUSED.values(), strict=True))
_UNUSED = (
    "embedding_dropout", "mlp_dropout", "classifier_dropout", "classifier_pooling",
    "deterministic_flash_attn", "reference_compile", "repad_logits_with_grad", "sparse_prediction",
    "sparse_pred_ignore_index", "initializer_cutoff_factor", "gradient_checkpointing", "cls_token_id",
)  # fmt: skip
_KINDS = {FULL: ("global_rope_theta", 160_000.0), SLIDING: ("local_rope_theta", 10_000.0)}


def _config(hf: dict[str, Any]) -> ModelConfig:
    switches = Switches({"hidden_activation": "gelu", "norm_eps": 1e-5} | hf)
    switches.ignore(*_UNUSED)
    switches.ignore("layer_norm_eps")  # written besides `norm_eps`, which counts
    switches.only("position_embedding_type", "absolute")  # written by mistake
    shape = read_shape(switches, 8192, activation="hidden_activation")
    switches.only("rope_scaling", None)  # transformers stretches local layers too, where it stands here
    ropes = read_ropes(switches, shape.head_dim, shape.context_length, _KINDS)
    reach = switches.integer("local_attention", 128) // 2 + 1
    every = switches.integer("global_attn_every_n_layers", 3)
    types = Switches({"layer_types": switches.each("layer_types", FULL, SLIDING), "sliding_window": reach})
    bias, mlp_bias = switches.flag("attention_bias", False), switches.flag("mlp_bias", False)
    layers = []
    for i, window in enumerate(read_windows(types, shape.depth, lambda layer: layer % every != 0)):
        rope = ropes[FULL if window is None else SLIDING]
        attention = shape.attention(rope, bias=bias, out_bias=bias, window=window)
        layers.append(LayerConfig(attention, shape.mlp(bias=mlp_bias), attention_norm=i > 0))
    predicts = any(name.endswith("MaskedLM") for name in architectures(hf))
    activation = switches.choice("classifier_activation", ACTIVATIONS, "gelu")
    dense_bias, logits_bias = switches.flag("classifier_bias", False), switches.flag("decoder_bias", True)
    tied = switches.flag("tie_word_embeddings", True)
    return finish(
        switches,
        "modernbert",
        shape,
        layers,
        NormConfig("layer", switches.number("norm_eps"), bias=switches.flag("norm_bias", False)),
        tied=tied or not predicts,
        embed_norm=True,
        both_ways=True,
        head=HeadConfig(activation, dense_bias, logits_bias) if predicts else None,
        predicts=predicts,
    )


def _hf_config(config: ModelConfig) -> dict[str, Any]:
    attention, mlp = config.layers[0].attention, config.layers[0].mlp
    windows = [layer.attention.window for layer in config.layers if layer.attention.window is not None]
    kind = "ModernBertForMaskedLM" if config.predicts else "ModernBertModel"
    switches: dict[str, Any] = {
        "local_attention": 2 * (windows[0] - 1) if windows else 128,
        "layer_types": write_windows(config)["layer_types"],
        "attention_bias": attention.bias,
        "mlp_bias": getattr(mlp, "bias", False),
        "norm_bias": config.norm.bias,
        "classifier_bias": config.head is not None and config.head.dense_bias,
        "decoder_bias": config.head is None or config.head.bias,
        "classifier_activation": HF_ACTIVATIONS[config.head.activation if config.head else "gelu"],
        "pad_token_id": None,
    }
    written = write_decoder(config, kind, activation="hidden_activation", **switches)
    written["norm_eps"] = written.pop("rms_norm_eps")
    for other in ("num_key_value_heads", "head_dim", "rope_theta"):
        written.pop(other)
    return written | write_ropes(config)


def _keys(config: ModelConfig) -> Iterator[tuple[str, str]]:
    yield from names(config, _SITES, _ENDS, _LAYERS)
    if config.head is not None and config.head.bias:
        yield "head_bias", "decoder.bias"


def _packed(config: ModelConfig) -> Iterator[Packed]:
    return packed(config, _LAYERS, _FUSED)


def _gguf_config(switches: Switches) -> ModelConfig:
    """A bare model; the activation is not said there."""
    switches.only("attention.causal", False)
    hf = read_gguf_as_hf(switches, "modernbert", local_rope_theta=switches.number("rope.freq_base_swa", 10_000.0))
    for other in ("num_key_value_heads", "head_dim"):
        hf.pop(other)
    hf["norm_eps"] = hf.pop("rms_norm_eps")
    hf["global_rope_theta"] = hf.pop("rope_theta")
    hf["local_attention"] = hf.pop("sliding_window")
    hf["global_attn_every_n_layers"] = switches.integer("attention.sliding_window_pattern", 3)
    return _config(hf)


def _fresh(shape: Shape, theta: float, more: Mapping[str, Any]) -> ModelConfig:
    """All layers see all of a text; those that look around them only pay where texts are long."""
    shape = replace(shape, activation="gelu")
    attention = shape.attention(RopeConfig(shape.head_dim, theta))
    layers = tuple(LayerConfig(attention, shape.mlp(), attention_norm=i > 0) for i in range(shape.depth))
    head = HeadConfig("gelu", dense_bias=False)
    norm = NormConfig("layer", 1e-5)
    return shape.model("modernbert", layers, norm=norm, embed_norm=True, both_ways=True, head=head, **more)


FAMILY = Family(
    name="modernbert",
    group="encoder",
    fresh=_fresh,
    grouped=False,
    config=_config,
    hf_config=_hf_config,
    keys=_keys,
    packed=_packed,
    prefix="model.",
    gguf=Gguf(
        "modern-bert",
        _gguf_config,
        None,
        lambda config: names(config, _GGUF_SITES, _GGUF_ENDS, "blk.{}"),
        lambda config: packed(config, "blk.{}", _GGUF_FUSED),
    ),
    ignored=(r"decoder\.weight",),
)
