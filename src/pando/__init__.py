"""Pando: many language features on one base model. Everything public is here and loads when it is first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pando.adapt.ladder import Report as Report
    from pando.adapt.ladder import adapt as adapt
    from pando.errors import PandoError as PandoError
    from pando.interface import Capabilities as Capabilities
    from pando.interface import Chunk as Chunk
    from pando.interface import Completion as Completion
    from pando.interface import FeatureRequest as FeatureRequest
    from pando.interface import Features as Features
    from pando.interface import GenerateRequest as GenerateRequest
    from pando.interface import Identity as Identity
    from pando.interface import LanguageModel as LanguageModel
    from pando.interface import Latency as Latency
    from pando.interface import ScoreRequest as ScoreRequest
    from pando.interface import Scores as Scores
    from pando.interface import TokenLogprob as TokenLogprob
    from pando.interface import Usage as Usage
    from pando.skin import Prediction as Prediction
    from pando.skin import Skin as Skin
    from pando.skin import load_skin as load_skin
    from pando.skin.load import load as load
    from pando.task import Example as Example
    from pando.task import Task as Task

_HOMES = {
    "pando.adapt": ("adapt",),
    "pando.adapt.ladder": ("Report",),
    "pando.errors": ("PandoError",),
    "pando.interface": (
        "Capabilities",
        "Chunk",
        "Completion",
        "FeatureRequest",
        "Features",
        "GenerateRequest",
        "Identity",
        "LanguageModel",
        "Latency",
        "ScoreRequest",
        "Scores",
        "TokenLogprob",
        "Usage",
    ),
    "pando.skin": ("Prediction", "Skin", "load_skin"),
    "pando.skin.load": ("load",),
    "pando.task": ("Example", "Task"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(["__version__", *_HOME])


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pando' has no attribute {name!r}")
    module = importlib.import_module(_HOME[name])
    # `pando.adapt` is both a function and a floor of the house: the package itself is callable
    return module if name == "adapt" else getattr(module, name)


def __dir__() -> list[str]:
    return [*__all__]
