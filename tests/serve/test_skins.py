from __future__ import annotations

import itertools
import json
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from pando.errors import SkinError
from pando.interface import GenerateRequest, Identity
from pando.serve.registry import Registry, find_skins
from pando.skin import Skin
from pando.skin.linear import Linear
from pando.skin.parts import Decoding, Prompt, Reading
from tests.serve.conftest import Running
from tests.serve.fake_model import WIDTH, FakeModel
from tests.serve.test_chat import events

LABELS = ("bad", "good", "so so")
PROMPT = Prompt("How is it?", ("text",))
ASK = [{"role": "user", "content": "a fine day"}]
FLOOR = Skin(
    name="mood-floor", kind="classify", rung="floor", method="floor", prompt=PROMPT, labels=LABELS,
    baseline="constant", constant="good",
)  # fmt: skip
ZERO = Skin(
    name="mood", kind="classify", rung="zero", method="score", prompt=PROMPT, labels=LABELS, base=FakeModel.identity
)
PROBE = Skin(
    name="mood-probe", kind="classify", rung="probe", method="probe", prompt=PROMPT, labels=LABELS,
    base=FakeModel.identity, reading=Reading((-1,)),
    linear=Linear(np.random.default_rng(0).normal(size=(3, WIDTH)).astype("f4"), np.zeros(3, "f4")),
)  # fmt: skip
WRITE = Skin(
    name="write", kind="generate", rung="zero", method="generate", prompt=PROMPT, base=FakeModel.identity,
    decoding=Decoding(max_tokens=40),
)  # fmt: skip
EXTRACT = Skin(
    name="extract", kind="extract", rung="zero", method="generate", prompt=PROMPT, base=FakeModel.identity,
    grammar={"type": "object", "properties": {"what": {"type": "string"}}},
)  # fmt: skip
PAIR = replace(FLOOR, name="pair", prompt=Prompt("Which?", ("title", "body")))
SKINS = (FLOOR, ZERO, PROBE, WRITE, EXTRACT, PAIR)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for skin in SKINS:
        skin.save(tmp_path / "skins" / skin.name)
    return tmp_path / "skins"


@pytest.fixture
def server(start: Callable[..., Running], folder: Path) -> Running:
    return start(skins=folder)


def test_the_base_comes_first_then_the_skins(server: Running) -> None:
    listed = server.openai.models.list().data
    assert [model.id for model in listed] == ["fake", *sorted(skin.name for skin in SKINS)]
    mood: Any = server.openai.models.retrieve("mood")
    assert mood.parent == "fake" and mood.version == ZERO.version and mood.created > 1e9 and mood.kind == "classify"


@pytest.mark.parametrize("skin", SKINS[:5], ids=lambda skin: skin.name)
def test_chat_says_what_the_skin_predicts(server: Running, model: FakeModel, skin: Skin) -> None:
    (expected,) = skin.predict(["a fine day"], model)
    text = expected.value if isinstance(expected.value, str) else json.dumps(expected.value)
    earlier = [{"role": "user", "content": "and before?"}, {"role": "assistant", "content": "bad"}]
    answer: Any = server.openai.chat.completions.create(model=skin.name, messages=earlier + ASK)
    assert answer.choices[0].message.content == text and answer.choices[0].message.refusal is None
    assert answer.pando["confidence"] == pytest.approx(expected.confidence)
    assert answer.pando["skin_version"] == skin.version and answer.pando["abstained"] is False
    assert answer.usage.prompt_tokens == expected.usage.prompt_tokens
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in server.openai.chat.completions.create(model=skin.name, messages=ASK, stream=True)
    ]
    assert "".join(pieces) == text
    assert len([piece for piece in pieces if piece]) > 1 if skin is WRITE else True  # it is told while it is written
    first, _ = server.ledger.lines()
    assert first["skin"] == skin.name and first["skin_version"] == skin.version and first["id"] == answer.id
    assert first["base"] == (None if skin is FLOOR else "fake") and first["usd"] > 0


def test_the_last_event_carries_the_card(server: Running) -> None:
    for name in ("mood", "write"):
        found = events(server.http.post("/v1/chat/completions", json={"model": name, "messages": ASK, "stream": True}))
        assert found[-1]["pando"]["skin_version"] and found[-1]["choices"][0]["finish_reason"]
        assert [event for event in found if "pando" in event] == found[-1:]


def test_white_space_around_a_written_answer_is_never_sent(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.serve.fake_model._instance", lambda request: "  \n two  words \n ")
    monkeypatch.setattr(FakeModel, "context_length", 128)
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in server.openai.chat.completions.create(model="write", messages=ASK, stream=True, max_tokens=16)
    ]
    assert "".join(pieces) == "two  words"


def test_a_skin_that_is_not_sure_says_so(start: Callable[..., Running], folder: Path) -> None:
    shutil.rmtree(folder / "mood")
    replace(ZERO, abstain=0.999).save(folder / "mood")
    server = start(skins=folder)
    answer: Any = server.openai.chat.completions.create(model="mood", messages=ASK)
    assert answer.choices[0].message.content is None and "abstains" in answer.choices[0].message.refusal
    assert answer.pando["abstained"] is True
    found = server.http.post("/v1/classify", json={"model": "mood", "input": "x"}).json()["data"][0]
    assert found["label"] is None and "abstains" in found["refusal"] and sum(found["probs"]) == pytest.approx(1)
    streamed = events(server.http.post("/v1/chat/completions", json={"model": "mood", "messages": ASK, "stream": True}))
    assert "abstains" in streamed[-1]["choices"][0]["delta"]["refusal"]


def test_max_tokens_cuts_what_a_skin_writes_and_no_label(server: Running, model: FakeModel) -> None:
    cut = server.openai.chat.completions.create(model="write", messages=ASK, max_tokens=2)
    assert cut.choices[0].finish_reason == "length" and model.requests[-1].max_tokens == 2  # type: ignore[union-attr]
    server.openai.chat.completions.create(model="write", messages=ASK, max_tokens=200)
    assert model.requests[-1].max_tokens == 40  # type: ignore[union-attr]
    whole = server.openai.chat.completions.create(model="mood-floor", messages=ASK, max_tokens=1)
    assert whole.choices[0].message.content == "good" and whole.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    "sent",
    [
        {"n": 2},
        {"temperature": 0.7},
        {"top_p": 0.5},
        {"top_k": 40},
        {"min_p": 0.1},
        {"stop": "x"},
        {"logprobs": True},
        {"presence_penalty": 1},
        {"frequency_penalty": 1},
        {"response_format": {"type": "json_object"}},
        {"truncate": "left"},
        {"ignore_eos": True},
        {"repetition_penalty": 1.1},
        {"stop_token_ids": [1]},
    ],
    ids=lambda sent: next(iter(sent)),
)
def test_a_skins_decoding_is_its_own(server: Running, sent: dict[str, Any]) -> None:
    answer = server.http.post("/v1/chat/completions", json={"model": "mood", "messages": ASK, **sent})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == next(iter(sent))


def test_what_changes_no_answer_of_a_skin_is_taken(server: Running) -> None:
    sent = {"temperature": 0, "top_p": 1, "top_k": 1, "seed": 3, "response_format": {"type": "text"}, "user": "me"}
    answer = server.http.post("/v1/chat/completions", json={"model": "mood", "messages": ASK, **sent})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("name", "messages", "said"),
    [
        ("mood", [{"role": "system", "content": "x"}], "last user message"),
        ("mood", [{"role": "user", "content": "y" * 400}], "256"),
        ("write", [{"role": "user", "content": "y" * 400}], "256"),
        ("pair", ASK, "title, body"),
        ("pair", [{"role": "user", "content": "[1]"}], "title, body"),
        ("pair", [{"role": "user", "content": '{"title": "x"}'}], "body"),
        ("pair", [{"role": "user", "content": "[" * 100_000}], "title, body"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_inputs_that_a_skin_cannot_take(server: Running, name: str, messages: Any, said: str, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match=said) as refused:
        server.openai.chat.completions.create(model=name, messages=messages, stream=stream)
    assert refused.value.param == "messages"


def test_several_fields_come_as_json(server: Running) -> None:
    content = json.dumps({"title": "x", "body": "y"})
    answer = server.openai.chat.completions.create(model="pair", messages=[{"role": "user", "content": content}])
    assert answer.choices[0].message.content == "good"


def test_classify_gives_labels_and_probabilities(server: Running, model: FakeModel) -> None:
    texts = [f"text {i}" for i in range(100)]
    expected = PROBE.predict(texts, model)
    found = server.http.post("/v1/classify", json={"model": "mood-probe", "input": texts}).json()
    assert found["labels"] == list(LABELS) and found["object"] == "list"
    for index, (entry, prediction) in enumerate(zip(found["data"], expected, strict=True)):
        assert entry["index"] == index and entry["label"] == prediction.value and entry["num_classes"] == 3
        assert entry["probs"] == pytest.approx([(prediction.scores or {})[label] for label in LABELS])
    assert found["usage"]["prompt_tokens"] == sum(map(len, texts))
    one = server.http.post("/v1/classify", json={"model": "mood-probe", "input": "text 0"}).json()
    assert one["data"] == found["data"][:1]
    wrong = server.http.post("/v1/classify", json={"model": "write", "input": "x"})
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "model"


def test_plain_completions_and_embeddings_apply_only_the_adapter(
    start: Callable[..., Running], model: FakeModel, folder: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"none")
    replace(WRITE, name="tuned", adapter=adapter).save(folder / "tuned")
    server = start(skins=folder)
    server.openai.completions.create(model="tuned", prompt="as it stands", max_tokens=1)
    request = model.requests[-1]
    assert isinstance(request, GenerateRequest) and request.prompt == "as it stands"
    assert request.skin == str(folder / "tuned")
    server.openai.embeddings.create(model="tuned", input="x")
    assert model.requests[-1].skin == str(folder / "tuned")
    server.openai.completions.create(model="mood", prompt="x", max_tokens=1)
    assert model.requests[-1].skin is None
    server.openai.chat.completions.create(model="tuned", messages=ASK)  # type: ignore[arg-type]
    assert model.requests[-1].skin == str(folder / "tuned")


def test_a_skin_made_anew_is_served_from_the_next_call_on(server: Running, folder: Path) -> None:
    assert server.openai.chat.completions.create(model="mood-floor", messages=ASK).choices[0].message.content == "good"
    replace(FLOOR, constant="bad").save(folder / "mood-floor")
    assert server.openai.chat.completions.create(model="mood-floor", messages=ASK).choices[0].message.content == "bad"
    replace(FLOOR, name="newcomer").save(folder / "newcomer")
    assert server.openai.chat.completions.create(model="newcomer", messages=ASK).choices[0].message.content == "good"
    shutil.rmtree(folder / "newcomer")
    with pytest.raises(openai.NotFoundError):
        server.openai.chat.completions.create(model="newcomer", messages=ASK)
    versions = [line["skin_version"] for line in server.ledger.lines()]
    assert versions[0] == versions[2] != versions[1]


def test_an_adapter_replaced_during_a_call_gives_no_answer_of_both(
    server: Running, folder: Path, model: FakeModel, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (adapter / name).write_text("{}")
    tuned = replace(WRITE, name="tuned", adapter=adapter)
    tuned.save(folder / "tuned")
    model.seconds_per_token = 0.05

    def anew() -> None:
        while model.running == 0:
            time.sleep(0.005)
        (adapter / "adapter_config.json").write_text('{"r": 2}')
        tuned.save(folder / "tuned")

    for stream in (False, True):
        writer = threading.Thread(target=anew)
        writer.start()
        sent = {"model": "tuned", "messages": ASK, "stream": stream}
        answer = server.http.post("/v1/chat/completions", json=sent)
        writer.join()
        error = json.loads(answer.text.split("data: ")[-1])["error"]
        assert error["code"] == "skin_replaced" and answer.status_code == (200 if stream else 409)
        (adapter / "adapter_config.json").write_text("{}")
        tuned.save(folder / "tuned")
    # OpenAI's client asks again by itself
    writer = threading.Thread(target=anew)
    writer.start()
    assert server.openai.with_options(max_retries=1).chat.completions.create(model="tuned", messages=ASK).choices
    writer.join()


def test_a_skin_that_is_replaced_over_and_over_is_always_there(server: Running, folder: Path) -> None:
    ends = time.monotonic() + 2.0

    def replace_it() -> None:
        for turn in itertools.count():
            replace(FLOOR, constant=LABELS[turn % 3]).save(folder / "mood-floor")
            if time.monotonic() > ends:
                return

    writer = threading.Thread(target=replace_it)
    writer.start()
    asked = 0
    while time.monotonic() < ends:
        answer = server.openai.chat.completions.create(model="mood-floor", messages=ASK)
        assert answer.choices[0].message.content in LABELS
        asked += 1
    writer.join()
    assert asked > 20


def test_a_skin_that_breaks_while_served_is_named_and_the_others_go_on(server: Running, folder: Path) -> None:
    (folder / "mood-floor" / "skin.yaml").write_text("not: a skin")
    answer = server.http.post("/v1/chat/completions", json={"model": "mood-floor", "messages": ASK})
    assert answer.status_code == 500 and "skin.yaml" in answer.json()["error"]["message"]
    assert server.openai.chat.completions.create(model="mood", messages=ASK).choices
    assert server.openai.completions.create(model="fake", prompt="x").choices
    (folder / "copied").mkdir()  # half a skin that nobody knows yet
    (folder / "copied" / "skin.yaml").write_text("")
    names = [model.id for model in server.openai.models.list()]
    assert "mood" in names and "mood-floor" not in names
    assert server.http.post("/v1/chat/completions", json={"model": "nobody", "messages": ASK}).status_code == 404
    answer = server.http.post("/v1/chat/completions", json={"model": "mood-floor", "messages": ASK})
    assert answer.status_code == 500 and "skin.yaml" in answer.json()["error"]["message"]


def test_what_a_skins_folder_may_be(tmp_path: Path, model: FakeModel) -> None:
    out = tmp_path / "out"
    ZERO.save(out / "skin")
    ZERO.save(out / "skins" / "zero")
    assert find_skins(out) == [out / "skin"]  # a ladder's chosen one
    assert find_skins(out / "skin") == [out / "skin"]
    assert find_skins(tmp_path) == [out / "skin"]
    assert [served.name for served in Registry(model, tmp_path).served()] == ["fake", "mood"]
    (out / "report.json").write_text("{}")
    shutil.rmtree(out / "skin")
    with pytest.raises(SkinError, match=r"as --skins .*skins.floor"):
        Registry(model, out)
    for wrong in (tmp_path / "nowhere", tmp_path / "out" / "skins" / "zero" / "skin.yaml"):
        with pytest.raises(SkinError, match="no folder"):
            Registry(model, wrong)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SkinError, match="no skin in"):
        Registry(model, tmp_path / "empty")


def test_names_that_clash_and_wrong_bases_are_refused(tmp_path: Path, model: FakeModel) -> None:
    ZERO.save(tmp_path / "a" / "one")
    replace(FLOOR, name="mood").save(tmp_path / "a" / "two")
    with pytest.raises(SkinError, match="both named 'mood'"):
        Registry(model, tmp_path / "a")
    replace(FLOOR, name="fake").save(tmp_path / "b")
    with pytest.raises(SkinError, match="base model are both named"):
        Registry(model, tmp_path / "b")
    replace(ZERO, base=Identity(name="other", hash="sha256:0", source="x")).save(tmp_path / "c")
    with pytest.raises(SkinError, match="other"):
        Registry(model, tmp_path / "c")
