from __future__ import annotations

import numpy as np
import pytest

from tests.serve.conftest import Running
from tests.serve.fake_model import WIDTH


def test_vectors_are_those_of_the_model(server: Running) -> None:
    texts = ["one", "two", "three"]
    answer = server.openai.embeddings.create(model="fake", input=texts)  # the client asks for base64
    plain = server.openai.embeddings.create(model="fake", input=texts, encoding_format="float")
    expected = server.model.embed(texts)
    for found in (answer, plain):
        np.testing.assert_allclose([entry.embedding for entry in found.data], expected, rtol=1e-6)
    assert np.shape(plain.data[0].embedding) == (WIDTH,) and [entry.index for entry in plain.data] == [0, 1, 2]
    assert plain.usage.prompt_tokens == plain.usage.total_tokens == 11


@pytest.mark.parametrize("given", ["one", list(b"one"), [list(b"one")]], ids=["text", "ids", "list of ids"])
def test_every_form_of_input(server: Running, given: object) -> None:
    (entry,) = server.post("embeddings", input=given).json()["data"]
    np.testing.assert_allclose(entry["embedding"], server.model.embed(["one"])[0], rtol=1e-6)


def test_many_texts_are_answered_in_order(server: Running) -> None:
    texts = [f"text {i}" for i in range(300)]
    found = server.openai.embeddings.create(model="fake", input=texts)
    np.testing.assert_allclose([entry.embedding for entry in found.data], server.model.embed(texts), rtol=1e-6)
    (line,) = server.ledger.lines()
    assert line["prompt_tokens"] == sum(map(len, texts)) and line["compute_seconds"] >= 3.0
