"""The roberta family (RoBERTa, XLM-RoBERTa, multilingual E5 and BGE-M3): BERT with other names and positions from 2.

Papers: arXiv 1907.11692, 1911.02116. Not covered: relative positions, use as a decoder, pooler, classification
heads of more than one output, dropout, quantised weights.
"""

from __future__ import annotations

from typing import Any

from pando.model.config import ModelConfig
from pando.model.families import Family
from pando.model.families.bert import encoder_names, encoder_switches, read_encoder, renamed, write_encoder

_OFFSET = 2  # positions are counted from behind the padding token's number
_HEAD = {
    "head_dense": "lm_head.dense",
    "head_norm": "lm_head.layer_norm",
    "unembed": "lm_head.decoder",
    "judge_dense": "classifier.dense",
    "judge_out": "classifier.out_proj",
}
_CLASSES = {"roberta": "Roberta", "xlm-roberta": "XLMRoberta"}


def _config(hf: dict[str, Any]) -> ModelConfig:
    switches = encoder_switches(hf)
    switches.only("pad_token_id", _OFFSET - 1)
    return read_encoder(switches, str(hf["model_type"]), hf, _OFFSET, head="gelu")


FAMILY = Family(
    name="roberta",
    group="encoder",
    config=_config,
    hf_config=lambda config: write_encoder(config, _CLASSES[config.family]) | {"pad_token_id": _OFFSET - 1},
    keys=lambda config: encoder_names(
        config, "roberta.", _HEAD, "lm_head.bias" if config.tied else "lm_head.decoder.bias"
    ),
    prefix="roberta.",
    renamed=renamed,
    ignored=(
        r"(roberta\.)?embeddings\.position_ids",
        r"(roberta\.)?pooler\..*",
        r"lm_head\.(decoder\..*|bias)",  # the one that is not read: they are tied, or the bias is not used
    ),
)
