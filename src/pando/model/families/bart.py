"""The bart family (BART): the first transformer's encoder and decoder, with learned positions and norms after each sum.

Paper: arXiv 1910.13461. Not covered: a decoder alone, classification and question heads, what configs say of
generation (beams, forced tokens), dropout, quantised weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pando.model.config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig, NormConfig
from pando.model.families import Family
from pando.model.families.decoder import ACTIVATIONS, names
from pando.model.families.reading import Switches

_OFFSET = 2  # positions are counted from behind the numbers of the padding token and the one before
_OFF = ("add_bias_logits", "add_final_layer_norm", "normalize_before", "static_position_embeddings")
_ON = ("is_encoder_decoder", "normalize_embedding", "tie_word_embeddings")
_TRAINING = ("dropout", "attention_dropout", "activation_dropout", "classif_dropout", "classifier_dropout",
             "encoder_layerdrop", "decoder_layerdrop", "gradient_checkpointing")  # fmt: skip
_GENERATION = ("early_stopping", "force_bos_token_to_be_generated", "forced_bos_token_id", "forced_eos_token_id",
               "num_hidden_layers", "task_specific_params", "extra_pos_embeddings", "output_past")  # fmt: skip
_SITES = {
    "attention": "self_attn",
    "attention_post_norm": "self_attn_layer_norm",
    "cross": "encoder_attn",
    "cross_post_norm": "encoder_attn_layer_norm",
    "mlp.up": "fc1",
    "mlp.down": "fc2",
    "mlp_post_norm": "final_layer_norm",
}
_PARTS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}


def _config(hf: dict[str, Any]) -> ModelConfig:
    switches = Switches({"activation_function": "gelu"} | hf)
    switches.ignore(*_TRAINING, *_GENERATION)
    for switch in (*_OFF, "is_decoder"):
        switches.only(switch, False)
    for switch in _ON:
        switches.only(switch, True)
    d_model = switches.integer("d_model")
    common: dict[str, Any] = {
        "family": "bart",
        "vocab_size": switches.integer("vocab_size"),
        "d_model": d_model,
        "context_length": switches.integer("max_position_embeddings", 1024),
        "norm": NormConfig("layer", 1e-5, bias=True),
        "tied": True,
        "learned_positions": True,
        "position_offset": _OFFSET,
        "embed_norm": True,
        "final_norm": False,
        "embed_scale": d_model**0.5 if switches.flag("scale_embedding", False) else 1.0,
        "initializer_range": switches.number("init_std", 0.02),
    }
    activation = switches.choice("activation_function", ACTIVATIONS, "gelu")
    stacks = {}
    for side in ("encoder", "decoder"):
        heads = switches.integer(f"{side}_attention_heads")
        attention = AttentionConfig(heads, heads, d_model // heads, None, bias=True, out_bias=True)
        mlp = MlpConfig(switches.integer(f"{side}_ffn_dim"), activation, bias=True, gated=False)
        cross = attention if side == "decoder" else None
        stacks[side] = (LayerConfig(attention, mlp, "after", cross=cross),) * switches.integer(f"{side}_layers")
    start = switches.token("decoder_start_token_id", "eos_token_id")
    encoder = ModelConfig(**common, layers=stacks["encoder"], both_ways=True, predicts=False)
    switches.close()
    return ModelConfig(**common, layers=stacks["decoder"], encoder=encoder, start_token=start)


def _hf_config(config: ModelConfig) -> dict[str, Any]:
    assert config.encoder is not None
    written: dict[str, Any] = {
        "architectures": ["BartForConditionalGeneration"],
        "model_type": "bart",
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "max_position_embeddings": config.context_length,
        "activation_function": config.layers[0].mlp.activation.replace("gelu_tanh", "gelu_new"),
        "scale_embedding": config.embed_scale != 1,
        "init_std": config.initializer_range,
        "is_encoder_decoder": True,
        "decoder_start_token_id": config.start_token,
        "dropout": 0.0,
    }
    for side, stack in (("encoder", config.encoder), ("decoder", config)):
        written[f"{side}_layers"] = len(stack.layers)
        written[f"{side}_attention_heads"] = stack.layers[0].attention.heads
        written[f"{side}_ffn_dim"] = stack.layers[0].mlp.hidden
    return written


def _keys(config: ModelConfig) -> Iterator[tuple[str, str]]:
    assert config.encoder is not None
    sites: dict[str, str] = {}
    for ours, theirs in _SITES.items():
        more = _PARTS.items() if ours in ("attention", "cross") else [("", "")]
        sites |= {f"{ours}.{a}".rstrip("."): f"{theirs}.{b}".rstrip(".") for a, b in more}
    yield "embed.weight", "model.shared.weight"
    for stack, ours, theirs in ((config.encoder, "encoder.", "model.encoder"), (config, "", "model.decoder")):
        ends = {"positions": f"{theirs}.embed_positions", "embed_norm": f"{theirs}.layernorm_embedding"}
        for name, key in names(stack, sites, ends, theirs + ".layers.{}"):
            yield ours + name, key


FAMILY = Family(
    name="bart",
    group="encoder-decoder",
    config=_config,
    hf_config=_hf_config,
    keys=_keys,
    prefix="model.",
    ignored=(r"(model\.)?(encoder|decoder)\.version",),
    copies=(r"(model\.)?(encoder|decoder)\.embed_tokens\.weight", r"lm_head\.weight"),
    zeros=(r"final_logits_bias",),
)
