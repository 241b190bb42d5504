"""A mixture of experts from a dense base: every expert begins as the feed-forward layer, so that the outputs are the
same at first (sparse upcycling, arXiv 2212.05055).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pando.errors import BaseModelError
from pando.model.config import ExpertsConfig, MlpConfig, ModelConfig, RouterConfig
from pando.model.families import families_where, family

if TYPE_CHECKING:
    from pando.model.base import BaseModel

ROUTER_DEVIATION = 0.02  # of the routers' fresh weights: small, and not 0, which would send all tokens to the same ones


def mixture_config(config: ModelConfig, experts: int, top_k: int) -> ModelConfig:
    """The config of a dense one with so many experts in every layer.

    Raises:
        BaseModelError: its family, or a switch of it, has no mixture that is covered.
    """
    if any(isinstance(layer.mlp, ExpertsConfig) for layer in config.layers):
        raise BaseModelError(f"this {config.family} is a mixture already; name a dense base")
    called = family(config.family).mixture
    if called in (None, config.family):
        known = ", ".join(families_where(lambda one: one.mixture not in (None, one.name)))
        raise BaseModelError(f"{config.family} has no family with experts that is covered; {known} have one")
    if not 1 <= top_k <= experts or experts < 2:
        raise BaseModelError(f"{top_k} of {experts} experts cannot be: at least two, and no more for each token")
    layers = []
    for layer in config.layers:
        mlp = layer.mlp
        if not isinstance(mlp, MlpConfig) or mlp.bias:
            raise BaseModelError(f"a {config.family} with biases has no mixture that is covered")
        layers.append(replace(layer, mlp=ExpertsConfig(experts, mlp.hidden, RouterConfig(top_k), mlp.activation)))
    made = replace(config, family=called, layers=tuple(layers))
    found = family(called)
    if found.config(found.hf_config(made)).layers != made.layers:
        raise BaseModelError(f"this {config.family} has a switch (windows, biases) that {called} lacks")
    return made


def upcycle(base: BaseModel, folder: Path, experts: int, top_k: int, seed: int = 0) -> ModelConfig:
    """Writes the mixture as a Hugging Face folder, whole or not at all; returns its config.

    The weights of a token's experts add up to 1, and all experts are alike, so that it says what the base says. Its
    card names the base and the base's licence.

    Raises:
        BaseModelError: as `mixture_config`.
        PandoError: the folder cannot be written.
    """
    import torch

    from pando.model.card import Card
    from pando.model.export import licence_of, write_like
    from pando.model.transformer import Transformer

    config = mixture_config(base.config, experts, top_k)
    dense = dict(base.module().named_parameters())
    with torch.device("meta"):
        mixture = Transformer(config)
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in config.shapes().items():
        if name.endswith("router.weight"):
            state[name] = torch.empty(shape).normal_(0.0, ROUTER_DEVIATION, generator=generator)
        elif ".experts." in name:
            state[name] = dense[name.replace(".experts.", ".")].expand(shape).clone()
        else:
            state[name] = dense[name]
    mixture.load_state_dict(state, assign=True)
    named = base.identity
    made_of = {"base": named.name, "its hash": named.hash, "experts": experts, "experts a token": top_k, "seed": seed}
    summary = f"{named.name} as a mixture of experts, made by `pando upcycle`; trained no further, it says the same."
    card = Card(folder.name, licence_of(base) or "other", summary, training=made_of)
    write_like(base, folder, mixture, card.text())
    return config
