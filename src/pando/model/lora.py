"""Low-rank adapters (LoRA, arXiv 2106.09685) in the files of PEFT: `adapter_config.json`, `adapter_model.safetensors`.

An adapter addresses logical projections by their site (`layers.3.attention.q`), never packed weights, so that an
engine may fuse or quantise the base as it likes.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pando.errors import SkinError
from pando.model.checkpoint import tensors_of
from pando.model.config import ExpertsConfig
from pando.model.families import Packed, family
from pando.model.transformer import Transformer

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

# Switches of PEFT's LoraConfig that change what the adapter computes and that are not covered here.
_UNSUPPORTED = (
    "use_dora", "alora_invocation_tokens", "modules_to_save", "layer_replication", "megatron_config",
    "trainable_token_indices", "use_bdlora", "arrow_config", "lora_bias",
    "velora_config", "monteclora_config",
)  # fmt: skip


@dataclass(frozen=True)
class LoraConfig:
    """Rank, scale and sites of an adapter.

    Attributes:
        rank: inner dimension r.
        alpha: the change is scaled by alpha / r, or alpha / sqrt(r) if `rank_stabilised` (rsLoRA, arXiv 2312.03732).
        sites: module paths that are adapted.
    """

    rank: int
    alpha: float
    sites: tuple[str, ...]
    rank_stabilised: bool = False

    @property
    def scale(self) -> float:
        """Factor on B A x."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


class LoraAdapter:
    """A finished adapter: for each site A [r, in] and B [out, r], the scale folded into B."""

    def __init__(self, weights: Mapping[str, tuple[Tensor, Tensor]], digest: bytes) -> None:
        self._weights = dict(weights)
        self.digest = digest  # of the files it came from; part of every cache key

    def delta(self, site: str, x: Tensor) -> Tensor | None:
        """Change of the site's output [..., out] for its input x [..., in]; None if the site is not adapted."""
        pair = self._weights.get(site)
        return None if pair is None else F.linear(F.linear(x, pair[0]), pair[1])


class TrainableLora(nn.Module):
    """An adapter in training: A uniform as in PEFT's default (Kaiming, a = sqrt 5), B zero, both float32.

    `delta` computes in the dtype of its input, so that the low-rank products run as fast as the base's.
    """

    def __init__(self, model: Transformer, config: LoraConfig, seed: int) -> None:
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(seed)
        self._index = {site: i for i, site in enumerate(config.sites)}
        self.a, self.b = nn.ParameterList(), nn.ParameterList()
        projections = model.projections()
        for site in config.sites:
            projection = projections[site]
            bound = 1 / math.sqrt(projection.in_features)
            fresh = torch.empty(config.rank, projection.in_features).uniform_(-bound, bound, generator=generator)
            device = model.embed.weight.device
            self.a.append(nn.Parameter(fresh.to(device)))
            self.b.append(nn.Parameter(torch.zeros(projection.out_features, config.rank, device=device)))

    def delta(self, site: str, x: Tensor) -> Tensor | None:
        """Change of the site's output [..., out] for its input x [..., in]; None if the site is not adapted."""
        i = self._index.get(site)
        if i is None:
            return None
        inner = F.linear(x, self.a[i].to(x.dtype))
        return F.linear(inner, (self.b[i] * self.config.scale).to(x.dtype))

    def tensors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """A and B by site, unscaled, as PEFT stores them."""
        return {site: (self.a[i].detach(), self.b[i].detach()) for site, i in self._index.items()}


def all_linear(model: Transformer) -> tuple[str, ...]:
    """Every projection inside the blocks (PEFT's `all-linear`: no embedding, no head)."""
    return tuple(model.projections())


def save_peft(
    folder: Path, model: Transformer, config: LoraConfig, tensors: Mapping[str, tuple[Tensor, Tensor]], base: str
) -> None:
    """Writes an adapter that PEFT opens.

    Args:
        folder: an existing folder.
        model: the base it belongs to; its family names the modules.
        config: rank, scale and sites.
        tensors: A and B by site, unscaled.
        base: name or path of the base, for `base_model_name_or_path`.
    """
    from safetensors.torch import save_file

    sizes = {site: projection.out_features for site, projection in model.projections().items()}
    state, widened, adapted, parameters = {}, {}, set(), []
    # where there are experts, PEFT would take a module's name in a feed-forward layer for the experts' own matrices
    mixture = any(isinstance(layer.mlp, ExpertsConfig) for layer in model.config.layers)
    for module, part in _modules(model).items():
        sites = [site for site in part.ours if site in tensors]
        if not sites:
            continue
        # a matrix of theirs that holds several of ours takes their changes side by side: ranks add up, and each
        # part of the outputs is changed by its own
        a = torch.cat([tensors[site][0].float().cpu() for site in sites])
        blocks = []
        for site in part.ours:
            block = torch.zeros(sizes[site], len(a))
            if site in tensors:
                at = sites.index(site) * config.rank
                block[:, at : at + config.rank] = tensors[site][1].float().cpu()
            blocks.append(block)
        state[f"base_model.model.{module}.lora_A.weight"] = a.contiguous()
        state[f"base_model.model.{module}.lora_B.weight"] = part.join(blocks).contiguous()
        if mixture and ".mlp." in sites[0]:
            parameters.append(f"{module}.weight")
        else:
            adapted.add(module.rsplit(".", 1)[-1])
        if len(sites) > 1:
            widened[module] = len(sites)
    save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    grown = {module: math.sqrt(n) if config.rank_stabilised else n for module, n in widened.items()}
    settings = {
        "peft_type": "LORA",
        "task_type": None if model.config.both_ways else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(adapted),
        "target_parameters": parameters or None,
        "rank_pattern": {module: n * config.rank for module, n in widened.items()},
        "alpha_pattern": {module: n * config.alpha for module, n in grown.items()},
        "bias": "none",
        "use_rslora": config.rank_stabilised,
        "fan_in_fan_out": any(part.transposed for part in tensors_of(family(model.config.family), model.config)),
        "inference_mode": True,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def load_peft(folder: Path, model: Transformer, device: torch.device, dtype: torch.dtype) -> LoraAdapter:
    """Reads a PEFT LoRA adapter, its own or made elsewhere.

    Raises:
        SkinError: a file is missing or broken, a switch is not supported, or a key or shape does not fit the base.
    """
    config, raw = _read_config(folder), _read_weights(folder)
    modules = _modules(model)
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in raw.items():
        name = key.removeprefix("base_model.model.")
        module, _, rest = name.rpartition(".lora_")
        if rest not in ("A.weight", "B.weight") or module not in modules:
            raise SkinError(f"{folder / WEIGHTS_FILE}: key {key!r} fits no projection of this base")
        found.setdefault(module, {})[rest[0]] = tensor
    if not found:
        raise SkinError(f"{folder / WEIGHTS_FILE} has no LoRA weights")
    weights = {}
    for module, pair in sorted(found.items()):
        rank, alpha = (_of_module(config, name, module) for name in ("r", "lora_alpha"))
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        a, parts = _checked_pair(folder, model, modules[module], pair)
        for site, b in zip(modules[module].ours, parts, strict=True):
            weights[site] = a.to(device, dtype), (b.float() * scale).to(device, dtype)
    digest = hashlib.blake2b(digest_size=16)
    digest.update((folder / CONFIG_FILE).read_bytes())
    digest.update((folder / WEIGHTS_FILE).read_bytes())
    return LoraAdapter(weights, digest.digest())


def has_adapter(folder: Path) -> bool:
    """Whether the folder holds a PEFT adapter."""
    return (folder / CONFIG_FILE).exists()


def _of_module(config: dict[str, Any], name: str, module: str) -> float:
    """`r` or `lora_alpha` of a module: PEFT's patterns name modules, or ends of their paths as regular expressions."""
    pattern = config.get({"r": "rank_pattern", "lora_alpha": "alpha_pattern"}[name]) or {}
    for key, value in pattern.items():
        if re.fullmatch(rf"(.*\.)?({key})", module):
            return float(value)
    return float(config[name])


def _checked_pair(
    folder: Path, model: Transformer, part: Packed, pair: dict[str, Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """A [r, in], and B [out, r] of each of the sites that it changes."""
    where = f"{folder / WEIGHTS_FILE}: {part.theirs}"
    if set(pair) != {"A", "B"}:
        raise SkinError(f"{where} has only lora_{next(iter(pair))}")
    projections = [model.projections()[site] for site in part.ours]
    inputs, outputs = projections[0].in_features, [projection.out_features for projection in projections]
    a, b = pair["A"], pair["B"]
    if a.shape[1:] != (inputs,) or b.shape != (sum(outputs), a.shape[0]):
        raise SkinError(
            f"{where} has A {list(a.shape)} and B {list(b.shape)}, the base's projection is "
            f"[{sum(outputs)}, {inputs}]: is this adapter for another base?"
        )
    return a, part.split(b, outputs)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SkinError(f"{path} is missing: the folder holds no PEFT adapter") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise SkinError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise SkinError(f"{path}: peft_type is {kind!r}; only LORA adapters can be read")
    wrong: Iterable[str] = [name for name in _UNSUPPORTED if config.get(name)]
    if config.get("bias", "none") != "none":
        wrong = [*wrong, "bias"]
    if wrong:
        raise SkinError(f"{path}: {', '.join(wrong)} is set, which is not supported")
    for name in ("r", "lora_alpha"):
        if not isinstance(config.get(name), (int, float)) or config[name] <= 0:
            raise SkinError(f"{path}: {name} must be a positive number, not {config.get(name)!r}")
    return config


def _read_weights(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS_FILE
    if not path.exists():
        hint = "; adapter_model.bin is a pickle and is never read" if (folder / "adapter_model.bin").exists() else ""
        raise SkinError(f"{path} is missing{hint}")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise SkinError(f"{path} is not a readable safetensors file: {error}") from None


def _modules(model: Transformer) -> dict[str, Packed]:
    """Hugging Face module path -> the sites whose weights it holds, in the order of the forward pass."""
    known = model.projections()
    found = {}
    for part in tensors_of(family(model.config.family), model.config):
        sites = tuple(name.removesuffix(".weight") for name in part.ours)
        if all(site in known for site in sites):
            module = part.theirs.removesuffix(".weight")
            found[module] = Packed(module, sites, part.heads)  # A and B are never transposed
    return found
