"""Retrieval through the ladder on a tiny encoder: words, vectors, both, an adapter; and what is served of it."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pando.adapt.ladder import adapt
from pando.engine.engine import Engine
from pando.model.base import BaseModel, open_base
from pando.skin import load_skin
from pando.skin.search import Bm25, DocumentIndex, Searching, ranked, unit
from pando.task import Task
from tests.model import tiny

WORDS = ["fox", "dog", "cafe", "quick", "brown", "lazy", "jumps", "over", "return", "naive", "the", "def"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    from transformers import AutoConfig, AutoModel

    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "bert", vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, pad_token_id=0,
    )  # fmt: skip
    AutoModel.from_config(config).save_pretrained(folder)
    tiny.write_tokenizer(folder)
    return open_base(folder)


@pytest.fixture
def task(tmp_path: Path) -> Task:
    """Each document has three words of its own; a query has two of them."""
    draw = random.Random(0)
    names = [f"w{i:03d}x" for i in range(240)]
    documents = [
        {"id": f"d{i}", "text": " ".join([*draw.sample(WORDS, 4), *names[3 * i : 3 * i + 3]])} for i in range(80)
    ]
    rows = [
        {"query": " ".join(draw.sample(names[3 * i : 3 * i + 3], 2) + draw.sample(WORDS, 2)), "wanted": [f"d{i}"]}
        for i in range(80)
        for _ in range(2)
    ]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    (tmp_path / "task.yaml").write_text(
        "{name: find, kind: retrieve, instruction: Find it., data: {file: rows.jsonl, corpus: corpus.jsonl}, "
        "fields: {input: query, output: wanted}}"
    )
    return Task.load(tmp_path / "task.yaml")


def test_every_rung_is_measured_and_the_chosen_one_searches(base: BaseModel, task: Task, tmp_path: Path) -> None:
    with Engine(base, base.module(), torch.device("cpu"), "float32", 128) as model:
        report = adapt(task, out=tmp_path / "out", mode="sweep", model=model)
        quality = {name: rung["dev"]["quality"] for name, rung in report.rungs.items()}
        assert set(quality) == {"floor", "embed", "hybrid", "lora"}
        assert quality["floor"] > 0.9  # the words tell
        assert quality["hybrid"] >= quality["embed"]
        details = {one["metric"]: one for one in report.data["also"]}
        assert set(details) == {"recall@10", "recall@100", "mrr@10"}
        assert all(one["low"] <= one["quality"] <= one["high"] for one in details.values())
        for name in quality:
            skin = load_skin(tmp_path / "out" / "skins" / name, model)
            (said,) = skin.predict([f"{'w003x'} {'w004x'}"])
            assert isinstance(said.value, dict) and len(said.value) <= 100
            assert list(said.value.values()) == sorted(said.value.values(), reverse=True)
            if name in ("floor", "hybrid"):
                assert next(iter(said.value)) == "d1"
        again = adapt(task, out=tmp_path / "out", mode="sweep", model=model)
        assert {name: rung["dev"]["quality"] for name, rung in again.rungs.items()} == quality


def test_it_serves_vectors_and_reranks(base: BaseModel, task: Task, tmp_path: Path) -> None:
    from tests.serve.conftest import Running

    with Engine(base, base.module(), torch.device("cpu"), "float32", 128) as model:
        adapt(task, out=tmp_path / "out", mode="sweep", model=model)
        for name in ("embed", "floor"):
            skin = load_skin(tmp_path / "out" / "skins" / name, model)
            from dataclasses import replace

            replace(skin, name=f"find-{name}").save(tmp_path / "skins" / f"find-{name}")
        skin = load_skin(tmp_path / "skins" / "find-embed", model)
        server = Running(model, tmp_path, tmp_path / "skins")
        try:
            asked: dict[str, Any] = {"query": "w003x w004x", "documents": ["the fox", {"text": "w003x w005x"}, "lazy"]}
            found = server.post("rerank", **asked | {"model": "find-embed"}, return_documents=True)
            assert found.status_code == 200, found.text
            results = found.json()["results"]
            best = server.post("rerank", **asked | {"model": "find-embed"}, top_n=2).json()["results"]
            assert [one["index"] for one in best] == [one["index"] for one in results][:2]
            vectors = server.post("embeddings", model="find-embed", input=["w003x w004x", "w003x w005x"]).json()["data"]
            one, other = (np.array(each["embedding"]) for each in vectors)
            scores = {each["index"]: each["relevance_score"] for each in results}
            assert len(results) == 3 and scores[1] == pytest.approx(one @ other, abs=1e-5)
            assert skin.documents is not None and skin.documents.mean is not None
            assert all(set(each) == {"index", "relevance_score", "document"} for each in results)
            plain = server.post("rerank", **asked)
            assert plain.status_code == 200 and len(plain.json()["results"]) == 3
            words = server.post("rerank", **asked | {"model": "find-floor"})
            assert words.status_code == 400 and "words" in words.json()["error"]["message"]
            for wrong in ([], [3], "text"):
                assert server.post("rerank", query="x", documents=wrong).status_code == 400
            long = server.post("rerank", query="x", documents=["w003x", "w004x " * 5000])
            assert long.status_code == 400 and long.json()["error"]["param"] == "documents"
            chat = server.post("chat/completions", model="find-floor", messages=[{"role": "user", "content": "w003x"}])
            assert next(iter(json.loads(chat.json()["choices"][0]["message"]["content"]))) == "d1"
        finally:
            server.stop()


def test_a_corpus_without_words_is_no_trouble() -> None:
    words = Bm25.fit(["", "a", "\u732b"])
    assert words("a cat").tolist() == [0, 0, 0]


def test_what_is_read_of_a_text() -> None:
    how = Searching(1.0, query_prompt="Q: ", document_prompt="D: ", lower=True)
    assert how.read("Paris", "query") == "q: paris" and how.read(" ", "document") == "d: ."
    assert Searching(1.0).read("Paris", None) == "Paris" and Searching(1.0).read(" ", "query") == " "


def test_bm25_is_that_of_its_definition() -> None:
    texts = ["a cat sat on the mat", "the dog sat", "a bird in the tree sang the song", ""]
    words = Bm25.fit(texts)
    split = [[w for w in text.split() if len(w) > 1] for text in texts]
    mean = sum(map(len, split)) / len(split)
    scores = words("the dog sat sat")
    for i, document in enumerate(split):
        wanted = 0.0
        for word in ("the", "dog", "sat", "sat"):
            n = sum(word in other for other in split)
            idf = np.log(1 + (len(split) - n + 0.5) / (n + 0.5))
            tf = document.count(word)
            wanted += idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * len(document) / mean))
        assert scores[i] == pytest.approx(wanted, abs=1e-5)
    assert not words("zebra").any()


def test_the_same_corpus_makes_the_same_words_in_every_process() -> None:
    import subprocess
    import sys

    said = (
        "import numpy as np; from pando.skin.search import Bm25; w = Bm25.fit(['a cat sat on the mat', 'the dog sat']);"
        "print(w.words, w.data.tolist(), w.indices.tolist(), w.indptr.tolist())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", said], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True
        ).stdout
        for seed in "123"
    }
    assert len(found) == 1 and b"('cat', 'dog'" in found.pop()


def test_equal_scores_keep_the_order_of_the_corpus_and_shares_mix() -> None:
    vectors = unit(np.eye(4, dtype=np.float32), None)
    documents = DocumentIndex(("a", "b", "c", "d"), Bm25.fit(["xx yy", "xx", "zz", "yy"]), vectors)
    assert list(ranked(documents, Searching(0.0), "xx", None)) == ["b", "a"]
    near = np.array([0.0, 0.0, 1.0, 0.9], dtype=np.float32)
    assert list(ranked(documents, Searching(1.0, depth=3), "xx", near)) == ["c", "d", "a"]
    mixed = ranked(documents, Searching(0.5), "yy", near)
    assert next(iter(mixed)) == "d"


def test_what_a_query_wants_is_shown(task: Task) -> None:
    from pando.adapt.show import show
    from pando.errors import TaskError

    text = show(task, "embed", 2)
    assert text.count("=== query") == 2 and "searched by vectors" in text and "--- wanted (1): d" in text
    with pytest.raises(TaskError, match="is not for kind retrieve; it takes floor, embed, hybrid, lora"):
        show(task, "few", 1)
