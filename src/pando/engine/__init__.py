"""Runs a local base model fast: continuous batching, shared prefixes, adapters per request, scores, grammars."""

from pando.engine.engine import Engine
from pando.engine.load import load

__all__ = ["Engine", "load"]
