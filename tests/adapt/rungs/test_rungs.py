"""Every rung on small tasks: what it proposes, what it asks, that it can be cut off and go on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pando.adapt.rungs import RUNGS
from pando.errors import DataError
from pando.interface import Capabilities, FeatureRequest, GenerateRequest, ScoreRequest
from pando.skin import Skin
from pando.skin.parts import Scoring
from tests.adapt.rungs.conftest import DEAF, MakeLab
from tests.fakes import FakeModel

ASKING = ["zero", "few", "knn", "probe"]


def test_every_rung_of_a_task_file_is_there() -> None:
    from pando.task.file import RUNGS as names

    assert tuple(RUNGS) == names
    assert all(rung.name == name for name, rung in RUNGS.items())


@pytest.mark.parametrize("name", ["floor", *ASKING])
def test_a_rung_learns_what_the_words_tell(name: str, make_lab: MakeLab, tmp_path: Any) -> None:
    task, lab, _ = make_lab()
    skin = RUNGS[name].propose(task, lab)[0]
    assert (skin.name, skin.kind, skin.rung, skin.labels) == ("moods", "classify", name, ("bad", "good"))
    assert skin.contains_rows == (name in ("few", "knn"))
    found = lab.evaluate(skin)
    assert found.quality > (0.8 if name == "floor" else 0.65)  # the model knows half of the words
    assert all(p.confidence and 0.5 <= p.confidence <= 1 for p in found.predictions)
    saved = skin.save(tmp_path / "skin")
    assert lab.evaluate(saved).predictions == found.predictions


@pytest.mark.parametrize("name", ASKING)
def test_the_same_lab_gives_the_same_skin_and_asks_nothing_twice(name: str, make_lab: MakeLab) -> None:
    task, lab, model = make_lab()
    first = RUNGS[name].propose(task, lab)[0]
    asked = len(model.asked)
    again, lab, model = make_lab(task)
    assert RUNGS[name].propose(again, lab)[0].version == first.version
    assert len(model.asked) <= 6 < asked  # inputs without content are asked again, rows are not


def test_predicted_costs_order_the_rungs(make_lab: MakeLab) -> None:
    task, lab, _ = make_lab()
    costs = [RUNGS[name].cost(task, lab) for name in ("floor", "zero", "probe", "knn", "lora")]
    assert costs == sorted(costs)
    assert costs[0] == 0


def test_what_a_model_cannot_do_is_said(make_lab: MakeLab, intents: Any, cities: Any) -> None:
    poor = Capabilities(generate=False)
    assert RUNGS["floor"].fits(intents, poor) is None
    for name in ASKING:
        assert "model" in (RUNGS[name].fits(intents, poor) or "")
    assert "label" in (RUNGS["probe"].fits(cities, Capabilities(features=True)) or "")
    assert "generate" in (RUNGS["zero"].fits(cities, poor) or "")


class TestManyLabels:
    """Over 20 labels a few are scored, those of near rows."""

    @pytest.mark.parametrize("name", ["zero", "few", "knn"])
    def test_cost_does_not_grow_with_labels(self, name: str, make_lab: MakeLab, intents: Any) -> None:
        model = FakeModel({f"label {n:02d}": [f"topic{n:02d}x"] for n in range(30)})
        task, lab, _ = make_lab(intents, model)
        skin = RUNGS[name].propose(task, lab)[0]
        (request,) = skin.ask(model, lab.select[0])
        assert isinstance(request, ScoreRequest)
        assert len(request.continuations) == 10
        assert lab.evaluate(skin).quality > 0.9
        assert "label 00" not in str(request.context).split("topic")[0]  # no list of options

    def test_every_label_is_said_in_the_prior(self, make_lab: MakeLab, intents: Any) -> None:
        task, lab, _ = make_lab(intents)
        (skin,) = RUNGS["zero"].propose(task, lab)
        assert set(skin.scoring.prior) == set(skin.labels)


class TestCalibration:
    """A base that says one label more often than it should."""

    def test_a_bias_is_taken_off(self, make_lab: MakeLab) -> None:
        class Biased(FakeModel):
            def _scored(self, request: ScoreRequest) -> Any:
                found = super()._scored(request)
                found.logprobs[list(request.continuations).index("good")] += 5.0
                return found

        task, lab, _ = make_lab(model=Biased(DEAF))
        skin = RUNGS["zero"].propose(task, lab)[0]
        plain = replace(skin, scoring=Scoring())
        assert lab.evaluate(plain).quality < 0.6 < 0.65 < lab.evaluate(skin).quality
        assert 4 < skin.scoring.prior["good"] - skin.scoring.prior["bad"] < 6

    def test_confidence_is_about_right(self, make_lab: MakeLab) -> None:
        task, lab, _ = make_lab(train=1000)
        found = lab.evaluate(RUNGS["zero"].propose(task, lab)[0])
        assert abs(np.mean([p.confidence for p in found.predictions]) - found.quality) < 0.1

    def test_labels_that_say_nothing_leave_even_probabilities(self, make_lab: MakeLab) -> None:
        task, lab, _ = make_lab(model=FakeModel({}, noise=3.0))
        found = lab.evaluate(RUNGS["zero"].propose(task, lab)[0])
        assert np.mean([p.confidence for p in found.predictions]) < 0.62


class TestDemonstrations:
    def test_few_shows_the_same_rows_before_every_input(self, make_lab: MakeLab) -> None:
        task, lab, model = make_lab()
        skin = RUNGS["few"].propose(task, lab)[0]
        train = {row.text for row in lab.train}
        assert {d.inputs["text"] for d in skin.demonstrations} <= train
        first, second = (str(skin.ask(model, row)[0].context) for row in lab.select[:2])  # type: ignore[union-attr]
        assert first.split(lab.select[0].text)[0] == second.split(lab.select[1].text)[0]

    def test_labels_take_turns(self, make_lab: MakeLab) -> None:
        task, lab, _ = make_lab()
        shown = [d.output for d in RUNGS["few"].propose(task, lab)[0].demonstrations]
        assert abs(shown.count("good") - shown.count("bad")) <= 1

    def test_neighbours_come_from_train_and_the_nearest_is_last(self, make_lab: MakeLab) -> None:
        task, lab, model = make_lab()
        skin = RUNGS["knn"].propose(task, lab)[0]
        (request,) = skin.ask(model, lab.train[3].text)
        assert isinstance(request, ScoreRequest)
        turns = str(request.context).split("<|im_start|>user\n")[1:]
        assert turns[-2].split("<|im_end|>")[0] == turns[-1].split("<|im_end|>")[0]
        assert skin.retrieval is not None and skin.retrieval.rows is not None
        assert {d.inputs["text"] for d in skin.retrieval.rows} == {row.text for row in lab.train}

    def test_a_context_too_short_is_said(self, make_lab: MakeLab) -> None:
        task, lab, _ = make_lab(model=FakeModel(DEAF, context_length=40))
        with pytest.raises(DataError, match="do not fit the base's 40 tokens"):
            RUNGS["few"].propose(task, lab)


class TestProbe:
    def test_some_rows_are_read_in_every_context_and_all_in_the_best(self, make_lab: MakeLab) -> None:
        task, lab, model = make_lab(train=700)
        skin = RUNGS["probe"].propose(task, lab)[0]
        asked = [r for r in model.asked if isinstance(r, FeatureRequest)]
        contexts = {str(r.text).replace(str(r.text)[r.start :], "") if r.start else "" for r in asked}
        assert len(contexts) == 4
        shown = 16  # rows in demonstrations, which are not learnt from
        assert len(lab.train) + 4 * 256 - shown <= len(asked) <= len(lab.train) + 4 * 256
        assert skin.reading and len(skin.reading.layers) == 1

    def test_what_is_demonstrated_is_said(self, make_lab: MakeLab) -> None:
        class Helped(FakeModel):
            """Its states tell nothing unless demonstrations come before the input."""

            def _features(self, request: FeatureRequest) -> Any:
                found = super()._features(request)
                return found if str(request.text).count("assistant") > 2 else replace(found, vectors=found.vectors * 0)

        task, lab, _ = make_lab(model=Helped(DEAF))
        skin = RUNGS["probe"].propose(task, lab)[0]
        assert len(skin.demonstrations) == 8 and skin.contains_rows
        assert lab.evaluate(skin).quality > 0.65

    def test_rows_beyond_the_context_are_left_out(self, make_lab: MakeLab, tmp_path: Any) -> None:
        task, _, _ = make_lab()
        path = tmp_path / "train.jsonl"
        path.write_text(path.read_text() + '{"text": "%s", "label": "bad", "who": "x"}\n' % ("word " * 300))
        task, lab, _ = make_lab(task, FakeModel(DEAF, context_length=100))
        assert lab.evaluate(RUNGS["probe"].propose(task, lab)[0]).quality > 0.65


class TestWriting:
    """Rungs whose skins write: extract and generate."""

    def test_grammar_follows_from_the_rows(self, make_lab: MakeLab, cities: Any) -> None:
        task, lab, model = make_lab(cities, FakeModel({"Paris": ["paris"], "Rome": ["rome"], "Oslo": ["oslo"]}))
        (skin,) = RUNGS["zero"].propose(task, lab)
        assert skin.grammar == {
            "type": "object",
            "properties": {
                "city": {"enum": ["Oslo", "Paris", "Rome"]},
                "seats": {"type": "integer"},
                "day": {"enum": ["monday"]},
            },
            "required": ["city", "seats"],
            "additionalProperties": False,
        }
        (request,) = skin.ask(model, lab.select[0])
        assert isinstance(request, GenerateRequest)
        assert request.schema == skin.grammar
        value = lab.evaluate(skin).predictions[0].value
        assert isinstance(value, dict) and value["city"] == lab.select[0].output["city"]  # type: ignore[index]

    @pytest.mark.parametrize("name", ["few", "knn"])
    def test_demonstrations_are_json(self, name: str, make_lab: MakeLab, cities: Any) -> None:
        task, lab, model = make_lab(cities)
        skin: Skin = RUNGS[name].propose(task, lab)[0]
        (request,) = skin.ask(model, lab.select[0])
        assert isinstance(request, GenerateRequest) and request.messages
        assert request.messages[1]["content"].startswith('{"city": "')
        assert request.messages[0]["content"].startswith("Find the city")
