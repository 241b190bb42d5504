"""The ways in which a skin answers: what each asks of the base, and how it reads the answers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pando.interface import (
    Answer,
    FeatureRequest,
    Features,
    GenerateRequest,
    LanguageModel,
    Request,
    ScoreRequest,
    Scores,
    Side,
)
from pando.skin.linear import softmax
from pando.skin.parts import MethodName
from pando.skin.prediction import Prediction, spent
from pando.skin.render import context, input_start, render, reply
from pando.skin.search import ranked
from pando.task.rows import Output, one_text

if TYPE_CHECKING:
    from pando.skin.skin import Skin

Inputs = Mapping[str, str]
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


class Method(Protocol):
    """See `Skin.ask` and `Skin.answer`."""

    def ask(self, skin: Skin, model: LanguageModel, inputs: Inputs) -> list[Request]: ...
    def answer(self, skin: Skin, inputs: Inputs, answers: Sequence[Answer]) -> Prediction: ...


class Floor:
    """Asks no model."""

    def ask(self, skin: Skin, model: LanguageModel, inputs: Inputs) -> list[Request]:
        return []

    def answer(self, skin: Skin, inputs: Inputs, answers: Sequence[Answer]) -> Prediction:
        text = one_text(inputs)
        if skin.baseline in ("majority", "tfidf"):
            assert skin.words is not None and skin.linear is not None
            return _classified(skin.labels, skin.linear.probabilities(skin.words([text]))[0], [])
        value = {"copy": text, "lead": lead(text)}.get(skin.baseline or "", skin.constant)
        return Prediction(value)


class Score:
    """One request: how likely is each label (of a shortlist, where there are many) after the prompt?"""

    def ask(self, skin: Skin, model: LanguageModel, inputs: Inputs) -> list[Request]:
        labels = [reply(skin, model, label, end=skin.scoring.end) for label in _candidates(skin, inputs)]
        return [ScoreRequest(context=context(skin, model, inputs), continuations=labels, skin=_adapter(skin))]

    def answer(self, skin: Skin, inputs: Inputs, answers: Sequence[Answer]) -> Prediction:
        (scores,) = answers
        assert isinstance(scores, Scores)
        labels, scoring = _candidates(skin, inputs), skin.scoring
        score = np.array(scores.logprobs)
        if scoring.per_token:
            score = score / np.array(scores.tokens)
        prior = np.array([scoring.prior.get(label, 0.0) for label in labels])
        return _classified(labels, softmax(scoring.scale * (score - prior)), answers)


class Generate:
    """One request: write the answer, under the schema's grammar where there is one."""

    def ask(self, skin: Skin, model: LanguageModel, inputs: Inputs) -> list[Request]:
        return [
            GenerateRequest(
                messages=render(skin, inputs),
                max_tokens=skin.decoding.max_tokens,
                stop=skin.decoding.stop,
                schema=dict(skin.grammar) if skin.grammar is not None else None,
                logprobs=0,
                skin=_adapter(skin),
            )
        ]

    def answer(self, skin: Skin, inputs: Inputs, answers: Sequence[Answer]) -> Prediction:
        (completions,) = answers
        assert isinstance(completions, list)
        completion = completions[0]
        confidence = None
        if completion.logprobs:
            confidence = math.exp(sum(t.logprob for t in completion.logprobs) / len(completion.logprobs))
        usage, latency = spent(answers)
        return Prediction(_parsed(skin, completion.text), confidence, None, usage, latency)


class Probe:
    """One request: hidden states, which a linear classifier reads."""

    def ask(self, skin: Skin, model: LanguageModel, inputs: Inputs) -> list[Request]:
        assert skin.reading is not None
        return [feature_request(skin, model, inputs)]

    def answer(self, skin: Skin, inputs: Inputs, answers: Sequence[Answer]) -> Prediction:
        (features,) = answers
        assert isinstance(features, Features) and skin.linear is not None
        return _classified(skin.labels, skin.linear.probabilities(features.vectors.reshape(1, -1))[0], answers)


class Search:
    """At most one request: the query's vector, where documents are searched by vectors."""

    def ask(self, skin: Skin, model: LanguageModel, inputs: Inputs) -> list[Request]:
        how, reading = skin.searching, skin.reading
        assert how is not None
        if reading is None or not how.share:
            return []
        return [search_request(skin, one_text(inputs), "query")]

    def answer(self, skin: Skin, inputs: Inputs, answers: Sequence[Answer]) -> Prediction:
        assert skin.searching is not None and skin.documents is not None
        vector = next((found.vectors[0] for found in answers if isinstance(found, Features)), None)
        usage, latency = spent(answers)
        found = ranked(skin.documents, skin.searching, one_text(inputs), vector)
        return Prediction(found, None, None, usage, latency)


METHODS: dict[MethodName, Method] = {
    "floor": Floor(),
    "score": Score(),
    "generate": Generate(),
    "probe": Probe(),
    "search": Search(),
}


def search_request(skin: Skin, text: str | Sequence[int], side: Side | None) -> FeatureRequest:
    """What a skin that searches asks about a query or a document; long ones are read at their heads only."""
    reading, how = skin.reading, skin.searching
    assert reading is not None and how is not None
    return FeatureRequest(
        text=how.read(text, side) if isinstance(text, str) else text,
        layers=reading.layers,
        pooling=reading.pooling,
        skin=_adapter(skin),
        max_tokens=how.max_tokens,
        truncate="right",
    )


def feature_request(skin: Skin, model: LanguageModel, inputs: Inputs) -> FeatureRequest:
    """The request of a probe, by its `reading`."""
    reading = skin.reading
    assert reading is not None
    text, start = one_text(inputs), 0
    if reading.prompted:
        prompt = context(skin, model, inputs)
        text, start = prompt, input_start(model, prompt, text)
    return FeatureRequest(text=text, layers=reading.layers, pooling=reading.pooling, start=start, skin=_adapter(skin))


def lead(text: str) -> str:
    """The first sentence."""
    return _SENTENCE_END.split(text.strip(), maxsplit=1)[0]


def _candidates(skin: Skin, inputs: Inputs) -> list[str]:
    return skin.retrieval.candidates(one_text(inputs), skin.labels) if skin.retrieval else list(skin.labels)


def _adapter(skin: Skin) -> str | None:
    return str(skin.adapter) if skin.adapter else None


def _classified(labels: Sequence[str], probabilities: np.ndarray, answers: Sequence[Answer]) -> Prediction:
    usage, latency = spent(answers)
    best = int(np.argmax(probabilities))
    scores = {label: float(p) for label, p in zip(labels, probabilities, strict=True)}
    return Prediction(labels[best], float(probabilities[best]), scores, usage, latency)


def _parsed(skin: Skin, text: str) -> Output | None:
    if skin.kind != "extract":
        return text.strip()
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
