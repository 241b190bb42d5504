"""What decoders of the llama kind share: the names of their switches, weights and GGUF metadata."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pando.errors import BaseModelError
from pando.model.config import (
    AttentionConfig,
    ExpertsConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
    RopeConfig,
    RouterConfig,
)
from pando.model.families import Packed
from pando.model.families.reading import Switches, write_rope

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
ACTIVATIONS |= dict.fromkeys(("gelu_new", "gelu_fast"), "gelu_tanh")
HF_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}
FULL, SLIDING = "full_attention", "sliding_attention"
SITES = {  # ours: (Hugging Face, GGUF)
    "attention_norm": ("input_layernorm", "attn_norm"),
    "attention.q": ("self_attn.q_proj", "attn_q"),
    "attention.k": ("self_attn.k_proj", "attn_k"),
    "attention.v": ("self_attn.v_proj", "attn_v"),
    "attention.o": ("self_attn.o_proj", "attn_output"),
    "attention.q_norm": ("self_attn.q_norm", "attn_q_norm"),
    "attention.k_norm": ("self_attn.k_norm", "attn_k_norm"),
    "mlp_norm": ("post_attention_layernorm", "ffn_norm"),
    "mlp.gate": ("mlp.gate_proj", "ffn_gate"),
    "mlp.up": ("mlp.up_proj", "ffn_up"),
    "mlp.down": ("mlp.down_proj", "ffn_down"),
}
HF_SITES = {ours: theirs for ours, (theirs, _) in SITES.items()}
MOE_SITES = HF_SITES | {
    "mlp.router": "mlp.gate",
    "mlp.shared.gate": "mlp.shared_expert.gate_proj",
    "mlp.shared.up": "mlp.shared_expert.up_proj",
    "mlp.shared.down": "mlp.shared_expert.down_proj",
    "mlp.shared_gate": "mlp.shared_expert_gate",
}
HF_ENDS = {"embed": "model.embed_tokens", "norm": "model.norm", "unembed": "lm_head"}


@dataclass(frozen=True)
class Shape:
    """What every decoder's config says, under the names of `ModelConfig` and its parts."""

    d_model: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    activation: Any
    depth: int
    context_length: int

    def attention(self, rope: RopeConfig | None, **switches: Any) -> AttentionConfig:
        """Attention of this shape."""
        return AttentionConfig(self.heads, self.kv_heads, self.head_dim, rope, **switches)

    def mlp(self, **switches: Any) -> MlpConfig:
        """The feed-forward layer of this shape."""
        return MlpConfig(self.hidden, self.activation, **switches)

    def model(self, family: str, layers: tuple[LayerConfig, ...], **fields: Any) -> ModelConfig:
        """A model of this width and length."""
        return ModelConfig(family, d_model=self.d_model, layers=layers, context_length=self.context_length, **fields)


def fresh_decoder(family: str, **attention: Any) -> Callable[[Shape, float, Mapping[str, Any]], ModelConfig]:
    """`Family.fresh` of a decoder of the llama kind; `attention` has switches of `AttentionConfig`."""

    def fresh(shape: Shape, theta: float, more: Mapping[str, Any]) -> ModelConfig:
        layer = LayerConfig(shape.attention(RopeConfig(shape.head_dim, theta), **attention), shape.mlp())
        return shape.model(family, (layer,) * shape.depth, norm=NormConfig(eps=1e-6), **more)

    return fresh


def read_shape(
    switches: Switches, context: int = 2048, *, activation: str = "hidden_act", usual_hidden: int | None = None
) -> Shape:
    """What configs of the llama kind say of their shape.

    Args:
        context: most positions where nothing is said.
        activation: the switch of that.
        usual_hidden: width of the feed-forward layer where nothing is said, as a multiple of d_model.
    """
    d_model, heads = switches.integer("hidden_size"), switches.integer("num_attention_heads")
    switches.ignore("attention_dropout")  # of training
    return Shape(
        d_model=d_model,
        heads=heads,
        kv_heads=switches.integer("num_key_value_heads", heads),
        head_dim=switches.integer("head_dim", d_model // heads),
        hidden=switches.integer("intermediate_size", usual_hidden and usual_hidden * d_model),
        activation=switches.choice(activation, ACTIVATIONS, "silu"),
        depth=switches.integer("num_hidden_layers"),
        context_length=switches.integer("max_position_embeddings", context),
    )


def read_router(switches: Switches, top_k: int, *, normalise: bool = True) -> RouterConfig:
    """A softmax router of so many experts for each token, where nothing is said. What only its training needs is left
    out: the run that trains says that."""
    switches.ignore("output_router_logits", "router_aux_loss_coef")
    return RouterConfig(switches.integer("num_experts_per_tok", top_k), normalise=normalise)


def finish(
    switches: Switches, family: str, shape: Shape, layers: Sequence[LayerConfig], norm: NormConfig, **more: Any
) -> ModelConfig:
    """The config of what was read; whatever switch is left over is refused by name."""
    values: dict[str, Any] = {"context_length": shape.context_length} | more
    config = ModelConfig(
        family=family,
        vocab_size=switches.integer("vocab_size"),
        d_model=shape.d_model,
        layers=tuple(layers),
        norm=norm,
        initializer_range=switches.number("initializer_range", 0.02),
        **values,
    )
    switches.close()
    return checked(config)


def read_window(switches: Switches, default: int | None = None) -> int | None:
    """`sliding_window`: null says that there is none; `default` is what transformers takes where nothing is said."""
    if not switches.names("sliding_window"):
        return default
    switches.ignore("sliding_window")
    return switches.integer("sliding_window") if switches.has("sliding_window") else None


def read_windows(
    switches: Switches,
    depth: int,
    usual: Callable[[int], bool] = lambda layer: True,
    default: int | None = None,
) -> list[int | None]:
    """How far each layer looks back: `read_window`, in the layers that `layer_types` names or that `usual` says."""
    types = switches.each("layer_types", FULL, SLIDING)
    window = read_window(switches, default)
    if types and len(types) != depth:
        raise switches.wrong("layer_types", types, f"{depth} entries")
    slides = [one == SLIDING for one in types] if types else [window is not None and usual(i) for i in range(depth)]
    if any(slides) and window is None:
        raise switches.wrong("sliding_window", None, "a number, as layer_types has sliding layers")
    return [window if one else None for one in slides]


def write_windows(config: ModelConfig) -> dict[str, Any]:
    """`sliding_window` and `layer_types` of what `read_windows` reads."""
    windows = [layer.attention.window for layer in config.layers]
    types = [FULL if window is None else SLIDING for window in windows]
    return {"sliding_window": next((w for w in windows if w is not None), None), "layer_types": types}


def write_ropes(config: ModelConfig) -> dict[str, Any]:
    """Rotary settings of full and sliding layers, as transformers 5 has them."""
    found = {}
    for layer in config.layers:
        attention = layer.attention
        assert attention.rope is not None
        written = write_rope(attention.rope, attention.head_dim)
        stretched = written["rope_scaling"] or {"rope_type": "default"}
        found[FULL if attention.window is None else SLIDING] = {"rope_theta": written["rope_theta"]} | stretched
    return {"rope_parameters": found, "rope_scaling": None}


def write_decoder(
    config: ModelConfig, architecture: str, *, activation: str = "hidden_act", **switches: Any
) -> dict[str, Any]:
    """The Hugging Face config of what `read_shape` and `finish` read, with rotary positions of the first layer that has
    them, and the family's own switches."""
    attention, mlp = config.layers[0].attention, config.layers[0].mlp
    rope = next((layer.attention.rope for layer in config.layers if layer.attention.rope is not None), None)
    return {
        "architectures": [architecture],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": next(
            (one.mlp.hidden for one in config.layers if isinstance(one.mlp, MlpConfig)), mlp.hidden
        ),
        "num_hidden_layers": len(config.layers),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        activation: HF_ACTIVATIONS[mlp.activation],
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm.eps,
        "tie_word_embeddings": config.tied,
        **switches,
        "initializer_range": config.initializer_range,
        **({} if rope is None else write_rope(rope, attention.head_dim)),
    }


def names(
    config: ModelConfig, sites: Mapping[str, str], ends: Mapping[str, str], layers: str
) -> Iterator[tuple[str, str]]:
    """(our parameter name, theirs) of every parameter whose part has a name in `sites` (of a block) or `ends`.

    Args:
        layers: what a block's number is put into.
    """
    there = config.shapes()
    parts = dict(ends)
    for i in range(len(config.layers)):
        parts |= {f"layers.{i}.{ours}": f"{layers.format(i)}.{theirs}" for ours, theirs in sites.items()}
    for ours, theirs in parts.items():
        for kind in ("weight", "bias"):
            if f"{ours}.{kind}" in there:
                yield f"{ours}.{kind}", f"{theirs}.{kind}"


def hf_names(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """(our parameter name, Hugging Face key) as llama has them."""
    return names(config, HF_SITES, HF_ENDS, "model.layers.{}")


def hf_moe_names(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """The same with a router, and perhaps a shared expert, as the Qwens have them."""
    return names(config, MOE_SITES, HF_ENDS, "model.layers.{}")


def packed(config: ModelConfig, layers: str, groups: Mapping[str, Sequence[str]], **how: Any) -> Iterator[Packed]:
    """Tensors that hold several parts of each block: their name -> our sites."""
    for i, layer in enumerate(config.layers):
        own = layer.shapes(config.d_model, config.norm)
        for theirs, sites in groups.items():
            for kind in ("weight", "bias"):
                if f"{sites[0]}.{kind}" in own:
                    ours = tuple(f"layers.{i}.{site}.{kind}" for site in sites)
                    yield Packed(f"{layers.format(i)}.{theirs}.{kind}", ours, **how)


def experts(config: ModelConfig, layers: str, called: Mapping[str, str]) -> Iterator[Packed]:
    """The experts' matrices, each a tensor of its own.

    Args:
        layers: what a block's number and an expert's are put into.
        called: what theirs is called: "gate", "up", "down".
    """
    for i, layer in enumerate(config.layers):
        if isinstance(layer.mlp, ExpertsConfig):
            for expert in range(layer.mlp.count):
                for ours, theirs in called.items():
                    name = f"{layers.format(i, expert)}.{theirs}.weight"
                    yield Packed(name, (f"layers.{i}.mlp.experts.{ours}.weight",), index=expert)


def hf_experts(config: ModelConfig) -> Iterator[Packed]:
    """The experts' matrices as most families name them."""
    called = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
    return experts(config, "model.layers.{}.mlp.experts.{}", called)


def checked(config: ModelConfig) -> ModelConfig:
    """The config, whose heads, positions and experts go together.

    Raises:
        BaseModelError: they do not.
    """
    for mlp in {layer.mlp for layer in config.layers}:
        if isinstance(mlp, ExpertsConfig):
            _check_router(mlp.router, mlp.count)
    for attention in {layer.attention for layer in config.layers}:
        turned = attention.head_dim if attention.rope is None else attention.rope.dim
        if attention.heads % attention.kv_heads or turned % 2 or turned > attention.head_dim:
            raise BaseModelError(
                f"{attention.heads} attention heads of {attention.head_dim} dimensions cannot share "
                f"{attention.kv_heads} key-value heads with {turned} rotary dimensions (config.json)"
            )
        scaling = attention.rope and attention.rope.scaling
        if attention.rope and scaling and scaling.kind == "yarn" and attention.rope.theta <= 1:
            raise BaseModelError(f"config.json: rope_theta {attention.rope.theta:g} cannot be stretched by yarn")
        relative = attention.relative
        if relative is not None and (relative.buckets < 4 or relative.furthest <= relative.buckets // 2):
            raise BaseModelError(
                f"config.json: distances up to {relative.furthest} (relative_attention_max_distance) cannot be told "
                f"apart in {relative.buckets} buckets (relative_attention_num_buckets); expected at least 4 buckets, "
                "and a distance of more than half as many"
            )
    return config


def _check_router(router: RouterConfig, count: int) -> None:
    """That a token finds its experts.

    Raises:
        BaseModelError: there are too few, in all or in the groups that they may come from.
    """
    if router.top_k > count:
        raise BaseModelError(
            f"config.json: a token cannot go to {router.top_k} (num_experts_per_tok) of {count} experts"
        )
    groups, open_ = router.groups, router.top_groups
    if groups > 1 and (count % groups or open_ > groups or router.top_k > open_ * (count // groups)):
        raise BaseModelError(
            f"config.json: {router.top_k} experts of a token (num_experts_per_tok) cannot come from {open_} "
            f"(topk_group) of {groups} groups (n_group) of {count} experts"
        )
    if groups > 1 and router.best > count // groups:
        raise BaseModelError(
            f"config.json: {count} experts in {groups} groups (n_group) are fewer than the {router.best} of each that "
            "count for it"
        )
