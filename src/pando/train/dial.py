"""From a size or a budget to a whole configuration, by published rules. Whatever a file says itself stays as it says.

Sources, each used where it is named:
- nanochat (Karpathy, github.com/karpathy/nanochat, scripts/base_train.py of July 2026), tuned with Muon at a width of
  768 and 2**19 tokens a step: 12 tokens for each weight of matrices and head; width 64 for each block; rates that go
  with the root of the batch; AdamW's with the root of 768 / width.
- Power Lines (Bergsma et al., arXiv 2505.13738): the best batch goes with tokens ** 0.383.
- Chinchilla (Hoffmann et al., arXiv 2203.15556): 6 FLOPs for each weight and token.
- Muennighoff et al. (arXiv 2305.16264): up to four epochs of the same text are worth nearly as much as fresh text.
- Weight decay by its time constant (Wang and Aitchison, arXiv 2405.13698), as nanochat takes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pando.errors import BaseModelError
from pando.model import costs
from pando.model.base import open_base
from pando.model.config import ExpertsConfig, ModelConfig
from pando.model.families import family
from pando.model.families.decoder import Shape
from pando.train.config import PretrainConfig, ShapeConfig, build
from pando.train.configfile import Given, check_group, located, parse_count

TOKENS_PER_WEIGHT = 12  # nanochat
REFERENCE_BATCH = 2**19  # tokens a step, nanochat at a width of 768
REFERENCE_TOKENS = 12 * (12 * 12 * 768**2 + 32_768 * 768)  # of that model: 12 blocks, its head
MATRIX_RATE, RATE, DECAY = 0.02, 0.008, 0.28  # nanochat's Muon, its AdamW for the head, its weight decay
TIED_RATE = 0.02  # ours: between nanochat's rates for head (0.008) and embedding (0.3), as a tied matrix is both
ADAM_RATE = 0.0025  # AdamW for everything, at that batch and width
EPOCHS = 4  # Muennighoff et al.
LEAST_STEPS = 600  # ours: below, a small run is limited by its number of updates rather than by their noise
MOST_DECAY = 0.3  # ours: the time constant's rule was never tried on runs this short
READ = 0.8  # of an encoder-decoder's tokens, about, by span at its defaults
_HEAD = 64
_ALIGNED = 16  # widths of experts are a multiple of it, as grouped products ask


@dataclass(frozen=True)
class CorpusFacts:
    """What the dial needs of a corpus: tokens of its vocabulary, training tokens, UTF-8 bytes of a token, tokens held
    back."""

    vocab_size: int
    tokens: int
    bytes_per_token: float
    held_back: int = 0


@dataclass(frozen=True)
class Resolved:
    """A whole configuration, and in words where its values come from."""

    config: PretrainConfig
    notes: tuple[str, ...]


def resolve(given: Given, corpus: CorpusFacts, flops: Callable[[], float], usd_per_hour: float) -> Resolved:
    """Fills in what a file leaves open.

    Args:
        flops: measures how many FLOPs a second training will reach here; asked only where a budget decides.
        usd_per_hour: price of all machines of the run together.

    Raises:
        ConfigError: size, shape and sequence do not go together.
    """
    values, notes = dict(given.values), []
    hours = values.get("budget.hours")
    if values.get("budget.usd") is not None:
        hours = values["budget.usd"] / usd_per_hour if usd_per_hour else None
        if hours is None:
            raise given.wrong("budget.usd", "this machine costs nothing (PANDO_MACHINE_USD is 0): give hours")
    compute = 3600 * hours * flops() if hours is not None else None
    wanted = float(parse_count(values["size"])) if values.get("size") is not None else None
    if wanted is None and compute is not None:
        # 6 N T = C, with T = 12 N where it is open
        given_tokens = values.get("tokens")
        wanted = compute / (6 * given_tokens) if given_tokens else math.sqrt(compute / (6 * TOKENS_PER_WEIGHT))
        best = "" if values.get("base") is not None else f", best spent on about {wanted / 1e6:.3g}m weights"
        notes.append(f"budget: {hours:g} h are {compute:.2e} FLOPs{best}")
    if values.get("base") is not None:
        values["base"] = located(given)
        model = model_config(build(values), corpus.vocab_size)
        if not model.predicts:
            raise given.wrong(
                "base", f"{values['base']} is kept without its output head: nothing can be learnt with it"
            )
        check_group(given, family(model.family))
        notes.append(f"base: {values['base']}; rates are those for fresh weights: lower ones forget less (2308.04014)")
    else:
        shape = _shape(given, corpus.vocab_size, wanted if wanted is not None else 15e6)
        values |= {f"model.{name}": value for name, value in vars(shape).items() if f"model.{name}" not in values}
        model = model_config(build(values), corpus.vocab_size)
        _check_shape(given, shape, model)
    notes.append(f"model: {model.parameters:,} parameters, {len(model.layers)} blocks of width {model.d_model}")
    if "tokens" not in values:
        fresh = values.get("base") is None
        values["tokens"], note = _tokens(model, corpus, compute, fresh)
        notes.append(note)
    if "batch" not in values:
        values["batch"] = best_batch(values["tokens"], build(values).sequence)
        many = values["tokens"] >= LEAST_STEPS * values["batch"]
        steps = f"; at least {LEAST_STEPS} steps" if many else ", one row at least"
        notes.append(f"batch: {values['batch']:,} tokens a step (Power Lines{steps})")
    if values["batch"] % (sequence := build(values).sequence) and values["batch"] > sequence:
        whole = values["batch"] // sequence * sequence
        notes.append(f"batch: {whole:,} tokens a step, whole rows of {sequence} of the {values['batch']:,} asked for")
        values["batch"] = whole
    _rates(values, model)
    if values.get("watch.answers") is not None:
        values["watch.answers"] = str((given.path.parent / values["watch.answers"]).resolve())
    values = {name: value for name, value in values.items() if not name.startswith("budget.")}  # it is tokens now
    config = build(values)
    if config.sequence > model.context_length:
        raise given.wrong("sequence", f"{config.sequence} is longer than what the model holds, {model.context_length}")
    if config.batch < config.sequence:
        raise given.wrong("batch", f"{config.batch} is less than one row of {config.sequence} tokens")
    return Resolved(config, tuple(notes))


def model_config(config: PretrainConfig, vocab_size: int, start: int = 0) -> ModelConfig:
    """The model of a resolved configuration; `start` is what a fresh decoder with an encoder begins with.

    Raises:
        BaseModelError: the base that is to be gone on from cannot be used.
    """
    if config.base is not None:
        return open_base(config.base).config
    wanted, found = config.model, family(config.model.family)
    assert found.fresh is not None
    shape = Shape(
        d_model=wanted.width,
        heads=wanted.heads,
        kv_heads=wanted.kv_heads,
        head_dim=wanted.head_dim,
        hidden=wanted.hidden,
        activation="silu",
        depth=wanted.depth,
        context_length=wanted.context,
    )
    more = {"vocab_size": vocab_size, "tied": wanted.tied, "init": config.init}
    made = found.fresh(shape, wanted.rope_theta, more)
    if made.encoder is not None:
        made = replace(made, start_token=start)
    if not wanted.experts:
        return made
    assert found.mixture is not None
    met = wanted.hidden / (wanted.top_k + wanted.shared_experts)
    each = wanted.expert_hidden or _ALIGNED * max(1, round(met / _ALIGNED))
    router = family(found.mixture).router
    router = replace(router, top_k=wanted.top_k, groups=wanted.groups, top_groups=wanted.top_groups)
    experts = ExpertsConfig(wanted.experts, each, router, shared=each * wanted.shared_experts)
    layers = [replace(layer, mlp=experts) if i >= wanted.dense_layers else layer for i, layer in enumerate(made.layers)]
    return replace(made, family=found.mixture, layers=tuple(layers))


def scaling_weights(model: ModelConfig) -> int:
    """Weights that do the work: matrices and the output head (nanochat's choice for its rules); of experts, those that
    a token meets."""
    embeddings = model.vocab_size * model.d_model * (1 if model.tied else 2)
    return model.active_parameters - embeddings + model.vocab_size * model.d_model


def best_batch(tokens: int, sequence: int) -> int:
    """Tokens a step for so many tokens in all: Power Lines from nanochat's reference, a power of two of rows, and few
    enough that `LEAST_STEPS` steps are made."""
    rule = REFERENCE_BATCH * (tokens / REFERENCE_TOKENS) ** 0.383
    rows = max(1.0, min(rule, tokens / LEAST_STEPS) / sequence)
    return int(2 ** math.floor(math.log2(rows))) * sequence


def _shape(given: Given, vocab_size: int, wanted: float) -> ShapeConfig:
    """Of all depths and widths near 64 of width a block, the one whose parameters come nearest to `wanted`."""
    values = given.values
    best: tuple[float, ShapeConfig] | None = None
    depths = [values["model.depth"]] if "model.depth" in values else list(range(2, 97))
    widths = [values["model.width"]] if "model.width" in values else list(range(_HEAD, 12_289, _HEAD))
    plain = values.get("model.dense_layers", 0) if values.get("model.experts") else 0
    depths = [depth for depth in depths if depth > plain] or depths[-1:]
    for width in widths:
        one, two = (_parameters(_heads(values, plain + depth, width), vocab_size) for depth in (1, 2))
        for depth in depths:
            stretch = abs(math.log(width / (64 * depth)))
            if stretch > math.log(1.7) and len(widths) > 1 and len(depths) > 1:
                continue
            off = abs(math.log((one + max(0, depth - plain - 1) * (two - one)) / wanted)) + 0.15 * stretch
            if best is None or off < best[0]:
                best = (off, _heads(values, depth, width))
    assert best is not None
    return best[1]


def _parameters(shape: ShapeConfig, vocab_size: int) -> int:
    return model_config(build({f"model.{name}": value for name, value in vars(shape).items()}), vocab_size).parameters


def _heads(values: dict[str, Any], depth: int, width: int) -> ShapeConfig:
    """The rest of a shape, as Qwen3's small models have it: two queries share a key, and the feed-forward layer has
    about 8/3 of the width."""
    head_dim = values.get("model.head_dim", _HEAD if width < 2048 else 128)
    heads = values.get("model.heads", max(1, width // head_dim))
    found = family(values.get("model.family", ShapeConfig.family))
    grouped = heads % 2 == 0 and found.grouped
    kv = values.get("model.kv_heads", heads // 2 if grouped else heads)
    hidden = values.get("model.hidden", 64 * round(8 * width / 3 / 64))
    given = {name.removeprefix("model."): v for name, v in values.items() if name.startswith("model.")}
    length = {"context": max(1024, values.get("sequence", 0))}
    made = {"depth": depth, "width": width, "head_dim": head_dim, "heads": heads, "kv_heads": kv, "hidden": hidden}
    made |= {} if found.ties else {"tied": False}
    return ShapeConfig(**{**length, **made, **given})


def _tokens(model: ModelConfig, corpus: CorpusFacts, compute: float | None, fresh: bool) -> tuple[int, str]:
    if compute is not None:
        tokens = compute / train_flops(model)
        why = "what the budget affords"
    elif not fresh:
        tokens, why = corpus.tokens, "the corpus once"
    else:
        tokens = TOKENS_PER_WEIGHT * scaling_weights(model)
        why = f"{TOKENS_PER_WEIGHT} for each weight of matrices and head (nanochat)"
    most = EPOCHS * corpus.tokens
    if tokens > most:
        tokens, why = most, f"{EPOCHS} epochs of the corpus (Muennighoff et al.); {round(tokens):,} would be {why}"
    return max(1, round(tokens)), f"tokens: {round(tokens):,}, {why}"


def train_flops(model: ModelConfig, context: int = 0) -> float:
    """FLOPs of a token in training: three times those of a forward pass (arXiv 2203.15556, appendix F). `context` is
    the length of the document that it stands in; 0 leaves attention's own products out. Of an encoder-decoder, the
    mean of tokens that are read and written in `READ` to one.
    """
    tokens = max(1, context)
    if model.encoder is not None:
        read, written = round(READ * tokens), tokens - round(READ * tokens)
        matrices = READ * costs.source_matrix_flops(model) + (1 - READ) * costs.matrix_flops(model)
        each = matrices + (1 - READ) * costs.head_flops(model)
        if context:
            pairs = costs.source_flops(model, read) - read * costs.source_matrix_flops(model)
            pairs += costs.flops(model, written, source=read) - written * costs.matrix_flops(model)
            each += pairs / tokens
        return 3 * each
    return 3 * (costs.flops(model, tokens, cached=False) / tokens + costs.head_flops(model))


def _rates(values: dict[str, Any], model: ModelConfig) -> None:
    """Learning rates and decay from the reference, at this batch, width and number of tokens."""
    batch = values["batch"] / REFERENCE_BATCH
    adam = TIED_RATE if model.tied else RATE
    adam = ADAM_RATE if values.get("optim.kind") == "adamw" else adam
    horizon = REFERENCE_TOKENS / values["tokens"]
    decay = min(MOST_DECAY, DECAY * batch**0.5 * horizon) if values.get("optim.kind") != "adamw" else 0.1
    rules = {
        "optim.matrix_rate": MATRIX_RATE * batch**0.5,
        "optim.rate": adam * (batch * 768 / model.d_model) ** 0.5,
        "optim.weight_decay": decay,
        "optim.clip": 1.0 if values.get("optim.kind") == "adamw" else 0.0,
    }
    for name, value in rules.items():
        values.setdefault(name, float(f"{value:.3g}"))


def _check_shape(given: Given, shape: ShapeConfig, model: ModelConfig) -> None:
    """Whether sizes go together, and the family's own files can say how its experts stand."""
    if not family(shape.family).grouped and shape.kv_heads != shape.heads:
        raise given.wrong("model.kv_heads", f"a {shape.family} has as many as heads, {shape.heads}")
    if shape.heads % shape.kv_heads:
        raise given.wrong("model.kv_heads", f"{shape.heads} heads cannot share {shape.kv_heads} key-value heads")
    if not shape.experts:
        return
    if shape.dense_layers >= shape.depth:
        raise given.wrong("model.dense_layers", f"leaves none of {shape.depth} blocks for experts")
    found = family(model.family)
    try:
        kept = found.config(found.hf_config(model))
    except BaseModelError as error:
        raise given.wrong("model.family", f"a {model.family} cannot be kept so: {error}") from None
    if kept.layers != model.layers:
        names = ("shared_experts", "groups", "dense_layers")
        asked = [name for name in names if getattr(shape, name) != getattr(ShapeConfig, name)]
        raise given.wrong(f"model.{asked[0]}", f"a {model.family} has nothing of the kind")
