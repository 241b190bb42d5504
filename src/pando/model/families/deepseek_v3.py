"""The deepseek_v3 family (DeepSeek-V3, -R1): DeepSeek-V2 with experts scored one by one and balanced by a bias.

Paper: arXiv 2412.19437. Not covered: the layers that predict further tokens (their weights are left out), fp8 weights,
dropout.
"""

from __future__ import annotations

from typing import Any

from pando.model.config import ModelConfig, RouterConfig
from pando.model.families import Family
from pando.model.families.decoder import hf_experts, read_shape
from pando.model.families.deepseek_v2 import (
    deepseek_names,
    deepseek_switches,
    read_deepseek,
    read_latent,
    read_mixture,
    write_deepseek,
)


def _config(hf: dict[str, Any]) -> ModelConfig:
    switches = deepseek_switches({"q_lora_rank": 1536, "first_k_dense_replace": 3, "moe_intermediate_size": 2048} | hf)
    switches.only("scoring_func", "sigmoid")
    switches.only("topk_method", "noaux_tc")
    shape = read_shape(switches)
    router = RouterConfig(
        switches.integer("num_experts_per_tok", 8),
        scores="sigmoid",
        normalise=switches.flag("norm_topk_prob", True),
        scale=switches.number("routed_scaling_factor", 2.5),
        bias=True,
        groups=switches.integer("n_group", 8),
        top_groups=switches.integer("topk_group", 4),
        best=2,
    )
    mixture = read_mixture(switches, shape, router, 256)
    return read_deepseek(switches, "deepseek_v3", shape, read_latent(switches, shape), mixture)


FAMILY = Family(
    name="deepseek_v3",
    config=_config,
    hf_config=lambda config: write_deepseek(config, "DeepseekV3ForCausalLM"),
    keys=deepseek_names,
    packed=hf_experts,
    ignored=(r"model\.layers\.DEPTH\..*",),
)
