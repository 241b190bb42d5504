"""From the name of a base model to an engine that runs it."""

from __future__ import annotations

from pathlib import Path

import torch

from pando.engine.engine import Engine
from pando.engine.quantise import quantise
from pando.errors import PandoError
from pando.model.base import BaseModel, open_base
from pando.model.costs import cache_bytes, source_cache_bytes
from pando.settings import load_settings

DEFAULT_BASE = "smollm2-135m"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32}
_CACHE_SHARE = 0.15  # of the memory that is free after loading
_CACHE_BYTES = 2 << 30  # at most, on a CPU


def load(
    ref: str | Path = DEFAULT_BASE, device: str = "auto", dtype: str = "auto", skin: str | Path | None = None
) -> Engine:
    """Loads a base model into an engine.

    Args:
        ref: name of a pulled base, Hugging Face folder or `.gguf` file.
        device: "auto" (CUDA, Apple MPS, CPU, in this order), "cpu", "cuda" or "mps".
        dtype: "auto" (float32 on CPU, else bfloat16), "float32", "bfloat16" or "int8" (weights only).
        skin: folder whose adapter, if it has one, applies to requests that name no skin.

    Raises:
        BaseModelError: the base is not there or broken.
        PandoError: no such device or dtype.
    """
    where, kind = _device(device), _dtype(dtype)
    if kind == "auto":
        kind = "float32" if where.type == "cpu" else "bfloat16"
    threads = load_settings().threads
    if threads:
        torch.set_num_threads(threads)
    base = open_base(str(ref))
    module = base.module(device=str(where), dtype=_DTYPES[kind])
    if kind == "int8":
        module = quantise(module)
    module = module.eval().requires_grad_(False)
    return Engine(base, module, where, kind, _cache_tokens(base, where, kind), None if skin is None else str(skin))


def _device(name: str) -> torch.device:
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device("cuda" if there["cuda"] else "mps" if there["mps"] else "cpu")
    if not there.get(name):
        found = ", ".join(kind for kind, present in there.items() if present)
        raise PandoError(f"device {name!r} is not on this machine; there is {found}")
    return torch.device(name)


def _dtype(name: str) -> str:
    if name != "auto" and name not in _DTYPES:
        raise PandoError(f"dtype {name!r} is unknown; use auto, {', '.join(_DTYPES)}")
    return name


def _cache_tokens(base: BaseModel, device: torch.device, dtype: str) -> int:
    """How many tokens' keys and values to keep: a share of free memory, at least one full context."""
    if base.config.both_ways:
        return base.config.context_length  # an encoder keeps nothing
    number = 4 if dtype == "float32" else 2
    per_token = cache_bytes(base.config, number) + source_cache_bytes(base.config, number)
    if device.type == "cuda":
        room = int(torch.cuda.mem_get_info(device)[0] * (1 - 2 * _CACHE_SHARE))
    else:
        import psutil

        room = min(int(psutil.virtual_memory().available * _CACHE_SHARE), _CACHE_BYTES)
    return max(base.config.context_length, room // per_token)
