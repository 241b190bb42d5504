"""The bert family (BERT, MiniLM, E5, BGE and other sentence encoders): an encoder with norms after each sum.

Papers: arXiv 1810.04805, 2002.10957, 2212.03533, 2309.07597. Not covered: relative positions, use
as a decoder, a pooler by itself, classification heads of more than one output, dropout, quantised weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pando.model.config import Activation, HeadConfig, LayerConfig, ModelConfig, NormConfig
from pando.model.families import Family, Gguf
from pando.model.families.decoder import finish, names, read_shape, write_decoder
from pando.model.families.decoder_gguf import read_gguf_as_hf
from pando.model.families.reading import Switches, architectures

SITES = {
    "attention.q": "attention.self.query",
    "attention.k": "attention.self.key",
    "attention.v": "attention.self.value",
    "attention.o": "attention.output.dense",
    "attention_post_norm": "attention.output.LayerNorm",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
    "mlp_post_norm": "output.LayerNorm",
}
_EMBEDDINGS = {
    "embed": "word_embeddings",
    "positions": "position_embeddings",
    "token_types": "token_type_embeddings",
    "embed_norm": "LayerNorm",
}
_GGUF_SITES = {
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.o": "attn_output",
    "attention_post_norm": "attn_output_norm",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
    "mlp_post_norm": "layer_output_norm",
}
_GGUF_ENDS = {
    "embed": "token_embd",
    "positions": "position_embd",
    "token_types": "token_types",
    "embed_norm": "token_embd_norm",
}
_HEAD = {
    "head_dense": "cls.predictions.transform.dense",
    "head_norm": "cls.predictions.transform.LayerNorm",
    "judge_dense": "bert.pooler.dense",
    "judge_out": "classifier",
}
_GOOGLE = (  # of another pooler, in bert-base-multilingual and others
    "directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head",
    "pooler_type",
)  # fmt: skip


def renamed(key: str) -> str:
    """Norms as TensorFlow called them, in files that were converted from it (bert-base-uncased)."""
    return key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def encoder_switches(hf: dict[str, Any]) -> Switches:
    """What configs of this kind say, without what is of training or of other heads."""
    switches = Switches({"hidden_act": "gelu"} | hf)
    switches.ignore("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
    switches.ignore("sentence_transformers", "sbert_ce_default_activation_function")  # how cross-encoders spell a logit
    switches.ignore(*_GOOGLE)
    switches.only("position_embedding_type", "absolute")
    switches.only("is_decoder", False)
    switches.only("add_cross_attention", False)
    return switches


def read_encoder(
    switches: Switches, family: str, hf: dict[str, Any], position_offset: int = 0, head: Activation | None = None
) -> ModelConfig:
    """An encoder of this kind; it has a head if it was saved as one for masked tokens, whose activation is `head`, else
    that of the layers."""
    shape = read_shape(switches, 512)
    layer = LayerConfig(
        shape.attention(None, bias=True, out_bias=True), shape.mlp(bias=True, gated=False), order="after"
    )
    classes = architectures(hf)
    predicts = any(name.endswith(("MaskedLM", "ForPreTraining")) for name in classes)
    judges = any(name.endswith("SequenceClassification") for name in classes) and len(hf.get("id2label") or "ab") == 1
    tied = switches.flag("tie_word_embeddings", True)
    return finish(
        switches,
        family,
        shape,
        (layer,) * shape.depth,
        NormConfig("layer", switches.number("layer_norm_eps", 1e-12), bias=True),
        context_length=shape.context_length - position_offset,
        tied=tied or not predicts,
        learned_positions=True,
        position_offset=position_offset,
        token_types=switches.integer("type_vocab_size", 2),
        embed_norm=True,
        final_norm=False,
        both_ways=True,
        head=HeadConfig(head or shape.activation) if predicts else None,
        predicts=predicts,
        judges=judges,
    )


def write_encoder(config: ModelConfig, architecture: str) -> dict[str, Any]:
    """The config.json of what `read_encoder` reads; `architecture` is what models begin with ("Bert")."""
    kind = "ForMaskedLM" if config.predicts else "ForSequenceClassification" if config.judges else "Model"
    written = write_decoder(config, architecture + kind, type_vocab_size=config.token_types)
    for other in ("num_key_value_heads", "head_dim"):
        written.pop(other)
    written["layer_norm_eps"] = written.pop("rms_norm_eps")
    written["max_position_embeddings"] += config.position_offset
    if config.judges:
        written |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return written | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def encoder_names(config: ModelConfig, prefix: str, head: dict[str, str], bias: str) -> Iterator[tuple[str, str]]:
    """(our parameter name, Hugging Face key).

    Args:
        prefix: what keys of the stack begin with. head: names of the head's parts. bias: of the logits' bias.
    """
    ends = {ours: f"{prefix}embeddings.{theirs}" for ours, theirs in _EMBEDDINGS.items()} | head
    yield from names(config, SITES, ends, prefix + "encoder.layer.{}")
    if config.head is not None:
        yield "head_bias", bias


def _gguf_config(switches: Switches) -> ModelConfig:
    """A bare model; the activation is not said there. RoBERTa's are of this kind too, their positions from 0."""
    switches.only("attention.causal", False)
    hf = read_gguf_as_hf(switches, "bert", architectures=["BertModel"], type_vocab_size=switches.integer("token_types"))
    for other in ("num_key_value_heads", "head_dim"):
        hf.pop(other)
    hf["layer_norm_eps"] = hf.pop("rms_norm_eps")
    return read_encoder(encoder_switches(hf), "bert", hf)


FAMILY = Family(
    name="bert",
    group="encoder",
    config=lambda hf: read_encoder(encoder_switches(hf), "bert", hf),
    hf_config=lambda config: write_encoder(config, "Bert"),
    keys=lambda config: encoder_names(
        config,
        "bert.",
        _HEAD | {"unembed": "cls.predictions.decoder"},
        "cls.predictions.bias" if config.tied else "cls.predictions.decoder.bias",
    ),
    gguf=Gguf("bert", _gguf_config, None, lambda config: names(config, _GGUF_SITES, _GGUF_ENDS, "blk.{}")),
    prefix="bert.",
    renamed=renamed,
    ignored=(
        r"(bert\.)?embeddings\.position_ids",
        r"(bert\.)?pooler\..*",
        r"cls\.seq_relationship\..*",
        r"cls\.predictions\.(decoder\..*|bias)",  # the one that is not read: they are tied, or the bias is not used
    ),
)
