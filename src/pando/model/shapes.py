"""Names and shapes of all parameters of a config: what a model has, a checkpoint holds, and costs are counted from."""

from __future__ import annotations

from pando.model.config import AttentionConfig, ExpertsConfig, LayerConfig, MlpConfig, ModelConfig, NormConfig

Shapes = dict[str, tuple[int, ...]]


def model_shapes(config: ModelConfig) -> Shapes:
    """Of the whole model, as `pando.model.transformer.Transformer` has them."""
    found: Shapes = {"embed.weight": (config.vocab_size, config.d_model)}
    if config.encoder is not None:
        found |= {f"encoder.{name}": shape for name, shape in _stack_shapes(config.encoder).items()}
    found |= _stack_shapes(config)
    if config.head is not None:
        found |= _linear("head_dense", config.d_model, config.d_model, config.head.dense_bias)
        found |= _norm("head_norm", config.d_model, config.norm)
        if config.head.bias:
            found["head_bias"] = (config.vocab_size,)
    if config.judges:
        found |= _linear("judge_dense", config.d_model, config.d_model, True)
        found |= _linear("judge_out", 1, config.d_model, True)
    if not config.tied:
        found["unembed.weight"] = (config.vocab_size, config.d_model)
    return found


def _stack_shapes(config: ModelConfig) -> Shapes:
    """Of what stands between embedding and head."""
    found: Shapes = {}
    if config.learned_positions:
        found["positions.weight"] = (config.context_length + config.position_offset, config.d_model)
    if config.token_types:
        found["token_types.weight"] = (config.token_types, config.d_model)
    if config.embed_norm:
        found |= _norm("embed_norm", config.d_model, config.norm)
    attention = config.layers[0].attention
    if attention.relative is not None:
        found["relative.weight"] = (attention.relative.buckets, attention.heads)
    for i, layer in enumerate(config.layers):
        own = layer.shapes(config.d_model, config.norm)
        found |= {f"layers.{i}.{name}": shape for name, shape in own.items()}
    return found | _norm("norm", config.d_model, config.norm) if config.final_norm else found


def layer_shapes(layer: LayerConfig, d_model: int, norm: NormConfig) -> Shapes:
    """Of one block."""
    found: Shapes = {}
    for name, there in layer.norms.items():
        if there:
            found |= _norm(name, d_model, norm)
    inner = _latent_shapes if layer.attention.latent is not None else _attention_shapes
    found |= {f"attention.{name}": shape for name, shape in inner(d_model, layer.attention, norm).items()}
    if layer.cross is not None:
        crossed = _attention_shapes(d_model, layer.cross, norm)
        found |= {f"cross.{name}": shape for name, shape in crossed.items()}
    mlp = layer.mlp
    outer = _expert_shapes(d_model, mlp) if isinstance(mlp, ExpertsConfig) else _mlp_shapes(d_model, mlp)
    return found | {f"mlp.{name}": shape for name, shape in outer.items()}


def _norm(name: str, size: int, norm: NormConfig) -> Shapes:
    found: Shapes = {f"{name}.weight": (size,)}
    return found | {f"{name}.bias": (size,)} if norm.bias else found


def _linear(name: str, outputs: int, inputs: int, bias: bool = False) -> Shapes:
    found: Shapes = {f"{name}.weight": (outputs, inputs)}
    return found | {f"{name}.bias": (outputs,)} if bias else found


def _attention_shapes(d_model: int, config: AttentionConfig, norm: NormConfig) -> Shapes:
    found: Shapes = {}
    for name, size in (("q", config.inner), ("k", config.inner_kv), ("v", config.inner_kv)):
        found |= _linear(name, size, d_model, config.bias)
    found |= _linear("o", d_model, config.inner, config.out_bias)
    if config.qk_norm is not None:
        whole = config.qk_norm == "whole"
        found |= _norm("q_norm", config.inner if whole else config.head_dim, norm)
        found |= _norm("k_norm", config.inner_kv if whole else config.head_dim, norm)
    return found


def _latent_shapes(d_model: int, config: AttentionConfig, norm: NormConfig) -> Shapes:
    latent = config.latent
    assert latent is not None
    if latent.q_rank is None:
        found = _linear("q", config.inner, d_model)
    else:
        found = _linear("q_a", latent.q_rank, d_model, config.bias) | _norm("q_norm", latent.q_rank, norm)
        found |= _linear("q", config.inner, latent.q_rank)
    found |= _linear("kv_a", latent.rank + latent.rope_dim, d_model, config.bias) | _norm("kv_norm", latent.rank, norm)
    each = config.head_dim - latent.rope_dim + latent.value_dim
    found["kv_b.weight"] = (config.heads * each, latent.rank)
    return found | _linear("o", d_model, config.heads * latent.value_dim, config.out_bias)


def _mlp_shapes(d_model: int, config: MlpConfig) -> Shapes:
    found: Shapes = {}
    for name in ("gate", "up") if config.gated else ("up",):
        found |= _linear(name, config.hidden, d_model, config.bias)
    return found | _linear("down", d_model, config.hidden, config.bias)


def _expert_shapes(d_model: int, config: ExpertsConfig) -> Shapes:
    found: Shapes = {"router.weight": (config.count, d_model)}
    if config.router.bias:
        found["router.bias"] = (config.count,)
    for name in ("gate", "up"):
        found[f"experts.{name}.weight"] = (config.count, config.hidden, d_model)
    found["experts.down.weight"] = (config.count, d_model, config.hidden)
    if config.shared:
        found |= {f"shared.{name}": shape for name, shape in _mlp_shapes(d_model, config.shared_mlp).items()}
    if config.shared_gate:
        found["shared_gate.weight"] = (1, d_model)
    return found
