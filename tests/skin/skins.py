"""One skin of each kind, made by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from pando.interface import Identity
from pando.skin import Skin
from pando.skin.linear import Linear
from pando.skin.parts import Decoding, Demonstration, Prompt, Reading, Scoring
from pando.skin.retrieval import Retrieval
from pando.skin.tfidf import TfIdf
from tests.fakes import DIM, FakeModel

LABELS = ("bad", "good")
HINTS = {"bad": ("hate", "awful"), "good": ("love", "fine")}
PROMPT = Prompt("Good or bad?", ("text",))


def model() -> FakeModel:
    return FakeModel(HINTS)


def base() -> Identity:
    return model().identity


def score() -> Skin:
    return Skin(name="mood", kind="classify", rung="zero", method="score", prompt=PROMPT, base=base(), labels=LABELS)


def few() -> Skin:
    shown = (Demonstration({"text": "I love it"}, "good"), Demonstration({"text": "so: awful\n- '1.0'"}, "bad"))
    scoring = Scoring(prior={"bad": -1.25, "good": 1e-7}, scale=3.5)
    return replace(score(), rung="few", demonstrations=shown, scoring=scoring, prompt=replace(PROMPT, options=True))


def knn() -> Skin:
    rows = (*few().demonstrations, Demonstration({"text": "fine\u2028day 🙂"}, "good"))
    texts = [row.inputs["text"] for row in rows]
    words = TfIdf.fit(texts)
    found = Retrieval(words, words(texts).astype(np.float32), np.array([1, 0, 1], dtype=np.int32), rows, 2, 0)
    return replace(score(), rung="knn", retrieval=found)


def probe() -> Skin:
    weight = np.zeros((2, 2 * DIM), dtype=np.float32)
    weight[0, 0] = weight[1, 1] = 5.0
    linear = Linear(weight, np.zeros(2, dtype=np.float32), np.full(2 * DIM, 0.25, dtype=np.float32))
    reading = Reading((4, 1), "last", prompted=True)
    return replace(score(), rung="probe", method="probe", reading=reading, linear=linear)


def floor() -> Skin:
    words = TfIdf.fit(["hate love", "awful fine"])
    weight = np.random.default_rng(0).normal(size=(2, len(words.idf))).astype(np.float32)
    linear = Linear(weight, np.zeros(2, dtype=np.float32))
    return replace(score(), rung="floor", method="floor", base=None, baseline="tfidf", words=words, linear=linear)


def lead() -> Skin:
    return Skin(name="sum", kind="generate", rung="floor", method="floor", prompt=PROMPT, baseline="lead")


def empty() -> Skin:
    return replace(lead(), kind="extract", baseline="constant", constant={})


def extract() -> Skin:
    return Skin(
        name="slots",
        kind="extract",
        rung="zero",
        method="generate",
        prompt=Prompt("Find the city.", ("subject", "text")),
        base=base(),
        grammar={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        decoding=Decoding(max_tokens=20, stop=("\n\n",)),
        abstain=0.25,
        card={"metric": "field_f1", "quality": 0.5, "low": 0.4, "high": 0.6, "n": 40, "dtype": "float32"},
    )


def lora(folder: Path) -> Skin:
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return replace(score(), rung="lora", scoring=Scoring(per_token=False, end=True), adapter=folder)


def every(folder: Path) -> list[Skin]:
    return [score(), few(), knn(), probe(), floor(), lead(), empty(), extract(), lora(folder / "adapter")]
