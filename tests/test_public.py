"""The public surface: names, request and answer fields with their defaults, and what importing costs."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest

import pando

NAMES = sorted(
    [
        "Capabilities",
        "Chunk",
        "Completion",
        "Example",
        "FeatureRequest",
        "Features",
        "GenerateRequest",
        "Identity",
        "LanguageModel",
        "Latency",
        "PandoError",
        "Prediction",
        "Report",
        "ScoreRequest",
        "Scores",
        "Skin",
        "Task",
        "TokenLogprob",
        "Usage",
        "__version__",
        "adapt",
        "load",
        "load_skin",
    ]
)

REQUIRED = object()
FIELDS: dict[str, dict[str, Any]] = {
    "GenerateRequest": {
        "prompt": None,
        "messages": None,
        "max_tokens": 256,
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": None,
        "stop": (),
        "stop_token_ids": (),
        "n": 1,
        "logprobs": None,
        "prompt_logprobs": None,
        "schema": None,
        "regex": None,
        "choices": None,
        "skin": None,
        "truncate": "error",
        "ignore_eos": False,
    },
    "ScoreRequest": {"context": REQUIRED, "continuations": REQUIRED, "skin": None, "truncate": "error"},
    "FeatureRequest": {
        "text": REQUIRED,
        "layers": (-1,),
        "pooling": "mean",
        "start": 0,
        "side": None,
        "skin": None,
        "max_tokens": None,
        "truncate": "error",
    },
    "Completion": {
        "text": REQUIRED,
        "tokens": REQUIRED,
        "finish_reason": REQUIRED,
        "usage": REQUIRED,
        "latency": REQUIRED,
        "logprobs": None,
        "prompt_logprobs": None,
        "prompt_tokens": [],
        "index": 0,
    },
    "Scores": {
        "logprobs": REQUIRED,
        "greedy": REQUIRED,
        "tokens": REQUIRED,
        "usage": pando.Usage(),
        "latency": pando.Latency(),
    },
    "Usage": {"prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0, "truncated_tokens": 0},
    "Latency": {"queue": 0.0, "first_token": 0.0, "total": 0.0, "compute": 0.0},
    "Identity": {"name": REQUIRED, "hash": REQUIRED, "source": REQUIRED, "revision": None, "licence": None},
}


def default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return REQUIRED if field.default is dataclasses.MISSING else field.default


def test_names() -> None:
    assert pando.__all__ == NAMES == dir(pando)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_resolves(name: str) -> None:
    assert getattr(pando, name) is not None


def test_other_names_do_not() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = pando.nonsense


@pytest.mark.parametrize("name", FIELDS)
def test_fields_and_defaults(name: str) -> None:
    assert {field.name: default(field) for field in dataclasses.fields(getattr(pando, name))} == FIELDS[name]


def test_adapt_is_callable_even_after_its_modules_were_imported() -> None:
    import pando.adapt

    assert callable(pando.adapt)


@pytest.mark.parametrize("arguments", [["-c", "import pando"], ["-m", "pando", "--help"]])
def test_starting_loads_nothing_heavy(arguments: list[str]) -> None:
    script = f"import sys, runpy\nsys.argv[1:] = {arguments[2:]!r}\nimport pando, pando.cli\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "numpy", "sklearn", "scipy", "pydantic", "fastapi", "sqlalchemy", "matplotlib"} & set(loaded)
