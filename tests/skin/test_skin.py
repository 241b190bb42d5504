"""Asking, answering, predicting."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pando.errors import DataError, RequestError, SkinError
from pando.interface import FeatureRequest, Features, GenerateRequest, ScoreRequest, Scores
from pando.skin import Prediction, load_skin
from pando.skin.parts import Scoring
from pando.skin.predict import predict_each
from pando.task import Example
from tests.fakes import FakeModel
from tests.skin import skins


def scores(logprobs: Sequence[float], tokens: Sequence[int] = (1, 1)) -> Scores:
    return Scores(list(logprobs), [False] * len(logprobs), list(tokens))


class TestScoring:
    def test_mean_over_tokens_or_sum(self) -> None:
        skin = skins.score()
        answer = scores([-3.0, -2.0], [3, 1])
        assert skin.answer("x", [answer]).value == "bad"
        assert replace(skin, scoring=Scoring(per_token=False)).answer("x", [answer]).value == "good"

    def test_prior_scale_and_confidence(self) -> None:
        skin = replace(skins.score(), scoring=Scoring(prior={"bad": -1.0, "good": 0.5}, scale=2.0))
        found = skin.answer("x", [scores([-1.0, -1.0])])
        odds = np.exp(2 * (-1.0 + 1.0)), np.exp(2 * (-1.0 - 0.5))
        assert found.value == "bad" and found.scores
        assert found.confidence == found.scores["bad"] == pytest.approx(odds[0] / sum(odds))

    def test_an_adapter_and_the_end_of_the_turn_are_asked_with(self, tmp_path: Path) -> None:
        skin = skins.lora(tmp_path / "adapter")
        (request,) = skin.ask(skins.model(), "x")
        assert isinstance(request, ScoreRequest)
        assert request.continuations == ["bad<|im_end|>", "good<|im_end|>"]
        assert request.skin == str(tmp_path / "adapter")


class TestAbstaining:
    def test_below_the_threshold_nothing_is_said_but_the_scores_stay(self) -> None:
        sure, unsure = scores([0.0, -9.0]), scores([-1.0, -1.1])
        skin = replace(skins.score(), abstain=0.6)
        assert skin.answer("x", [sure]).value == "bad"
        found = skin.answer("x", [unsure])
        assert found.value is None and found.abstained
        assert found.confidence == pytest.approx(0.525, abs=0.001)
        assert found.scores and set(found.scores) == {"bad", "good"}

    def test_what_cannot_be_read_is_no_abstention(self) -> None:
        skin = replace(skins.extract(), abstain=0.1)
        model = FakeModel(write=lambda text: "{not json")
        (found,) = skin.predict([{"subject": "a", "text": "b"}], model)
        assert found.value is None and not found.abstained


class TestGenerating:
    def test_grammar_decoding_and_confidence(self) -> None:
        skin = skins.extract()
        model = FakeModel({"Rome": ["rome"]})
        inputs = {"subject": "trip", "text": "to Rome", "other": "ignored"}
        (request,) = skin.ask(model, inputs)
        assert isinstance(request, GenerateRequest)
        assert (request.max_tokens, request.stop, request.temperature) == (20, ("\n\n",), 0.0)
        assert request.schema == skin.grammar
        (found,) = skin.predict([inputs], model)
        assert found.value == {"city": "Rome"}
        assert found.confidence == pytest.approx(np.exp(-0.1))
        assert found.usage.completion_tokens > 0

    def test_text_is_trimmed(self) -> None:
        skin = replace(skins.extract(), kind="generate", grammar=None)
        (found,) = skin.predict([{"subject": "a", "text": "b"}], FakeModel(write=lambda text: " so it is\n"))
        assert found.value == "so it is"


class TestProbing:
    def test_one_request_with_the_layers_of_its_reading(self) -> None:
        skin, model = skins.probe(), skins.model()
        (request,) = skin.ask(model, "I love it")
        assert isinstance(request, FeatureRequest)
        assert (request.layers, request.pooling) == ((4, 1), "last")
        assert str(request.text)[request.start :].startswith("I love it<|im_end|>")

    def test_bare_input(self) -> None:
        skin = skins.probe()
        assert skin.reading
        bare = replace(skin, reading=replace(skin.reading, prompted=False))
        (request,) = bare.ask(skins.model(), "I love it")
        assert isinstance(request, FeatureRequest) and (request.text, request.start) == ("I love it", 0)

    def test_layers_are_laid_end_to_end(self) -> None:
        skin = skins.probe()
        vectors = np.full((2, 16), 0.25, dtype=np.float32)
        vectors[0, 1] = 1.25
        found = skin.answer("x", [Features(vectors)])
        assert found.value == "good"
        assert found.confidence == pytest.approx(1 / (1 + np.exp(-5.0)), rel=1e-6)


class TestFloors:
    def test_they_ask_nothing(self) -> None:
        model = skins.model()
        assert skins.floor().ask(model, "x") == [] == skins.lead().ask(model, "x")
        assert skins.floor().predict(["hate hate"])[0].value in skins.LABELS

    def test_lead_copy_and_constant(self) -> None:
        text = "First one. Second one."
        assert skins.lead().predict([text])[0].value == "First one."
        assert replace(skins.lead(), baseline="copy").predict([text])[0].value == text
        assert skins.empty().predict([text])[0].value == {}


class TestInputs:
    def test_rows_mappings_and_texts(self) -> None:
        skin = skins.score()
        row = Example("1", {"text": "a"}, "good")
        assert skin.inputs_of(row) == skin.inputs_of("a") == skin.inputs_of({"text": "a", "more": 1}) == {"text": "a"}

    def test_what_is_missing_is_named(self) -> None:
        with pytest.raises(DataError, match="text"):
            skins.score().inputs_of({"body": "a"})
        with pytest.raises(SkinError, match="subject, text"):
            skins.extract().inputs_of("a")


class TestPredicting:
    def test_answers_are_in_order(self) -> None:
        texts = ["I love it", "I hate it", "so fine", "awful"]
        assert [p.value for p in skins.score().predict(texts, skins.model())] == ["good", "bad", "good", "bad"]
        assert skins.score().predict([], skins.model()) == []

    def test_one_bad_input_is_its_own(self) -> None:
        model = FakeModel(skins.HINTS, fail="poison")
        found = predict_each(skins.score(), ["I love it", "poison", "awful", {"no": "text"}], model)
        assert [type(p) for p in found] == [Prediction, RequestError, Prediction, DataError]
        with pytest.raises(RequestError, match="poison"):
            skins.score().predict(["I love it", "poison"], model)

    def test_another_base_is_refused_unless_forced(self) -> None:
        other = FakeModel(skins.HINTS, name="other")
        with pytest.raises(SkinError, match=r"was made on fake .* and this is other"):
            skins.score().predict(["x"], other)
        assert skins.score().predict(["I love it"], other, force=True)[0].value == "good"

    def test_a_skin_remembers_what_it_was_loaded_with(self, tmp_path: Path) -> None:
        skins.score().save(tmp_path / "skin")
        other = FakeModel(skins.HINTS, name="other")
        with pytest.raises(SkinError, match="was made on"):
            load_skin(tmp_path / "skin", other)
        skin = load_skin(tmp_path / "skin", other, force=True)
        assert skin.predict(["awful"])[0].value == "bad"
        assert other.asked

    def test_other_numbers_than_measured_warn(self) -> None:
        skin = replace(skins.score(), card={"dtype": "float32"})
        with pytest.warns(UserWarning, match="measured in float32 and runs in int8"):
            skin.predict(["x"], FakeModel(skins.HINTS, dtype="int8"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            skin.predict(["x"], skins.model())

    @pytest.mark.real
    def test_the_real_base_is_loaded_once_for_all_skins(self, tmp_path: Path, real_model: Any) -> None:
        skin = replace(skins.score(), base=real_model.identity)
        for name in ("a", "b"):
            skin.save(tmp_path / name)
        first, second = load_skin(tmp_path / "a"), load_skin(tmp_path / "b")
        try:
            (found,) = first.predict(["I love this, it is good"])
            assert found.value in skins.LABELS and found.usage.prompt_tokens > 10
            assert second.model() is first.model()
        finally:
            first.model().close()
