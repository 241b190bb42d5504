"""Bases that are no decoders, through the whole ladder and the server: the rungs follow from what they can do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pando.adapt.ladder import adapt
from pando.engine.engine import Engine
from pando.errors import RequestError
from pando.interface import FeatureRequest, ScoreRequest
from pando.model.base import BaseModel, open_base
from pando.skin import load_skin
from tests.adapt.tasks import make_task
from tests.model import tiny

MASK, SENTINEL = "<|mask|>", "<|sentinel_0|>"
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "encoder": (
        "bert",
        {
            "vocab_size": 328, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "pad_token_id": 0,
            "num_attention_heads": 4, "max_position_embeddings": 128, "initializer_range": 0.2,
        },
    ),
    "encoder-decoder": (
        "t5",
        {
            "vocab_size": 328, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4,
            "decoder_start_token_id": 0, "n_positions": 256,
        },
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=SHAPES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    folder = tmp_path_factory.mktemp("base")
    kind, values = SHAPES[request.param]
    torch.manual_seed(0)
    auto = AutoModelForMaskedLM if kind == "bert" else AutoModelForSeq2SeqLM
    auto.from_config(AutoConfig.for_model(kind, **values)).save_pretrained(folder)
    made = tiny.tokenizer()
    made.add_special_tokens([MASK, SENTINEL])
    tiny.write_tokenizer(folder, made, mask_token=MASK)
    return open_base(folder)


def engine(base: BaseModel) -> Engine:
    return Engine(base, base.module(), torch.device("cpu"), "float32", 512)


def test_the_ladder_climbs_the_rungs_that_it_can(base: BaseModel, tmp_path: Path) -> None:
    writes = base.config.encoder is not None
    task = make_task(tmp_path, 200, 80, rungs=["floor", "zero", "few", "knn", "probe", "lora"])
    with engine(base) as model:
        assert model.capabilities.train and not model.capabilities.demonstrations
        assert model.capabilities.blank == (SENTINEL if writes else MASK)
        report = adapt(task, out=tmp_path / "out", mode="sweep", model=model)
        rungs = report.rungs
        assert {name for name, rung in rungs.items() if rung["dev"]} == {"floor", "zero", "probe", "lora"}
        assert "shown to it" in rungs["few"]["status"] and "shown to it" in rungs["knn"]["status"]
        skin = load_skin(tmp_path / "out" / "skins" / "lora", model)
        assert skin.method == ("score" if writes else "probe") and skin.adapter is not None
        said = skin.predict(["a great and lovely film", "an awful and dull phone"])
        assert {one.value for one in said} <= {"good", "bad"}
        zero = load_skin(tmp_path / "out" / "skins" / "zero", model)
        assert zero.prompt.blank == (SENTINEL if writes else MASK) or writes


def test_what_is_written_is_learnt_too(base: BaseModel, tmp_path: Path) -> None:
    """A task of kind generate: an encoder has only the floor, an encoder-decoder is asked and trained."""
    rows = [{"source": f"{word} {i}", "target": f"{word} it is"} for i in range(30) for word in ("fox", "dog", "café")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task.yaml").write_text(
        "{name: say, kind: generate, instruction: Say it., data: rows.jsonl, fields: {input: source, output: target}, "
        "metric: chrf}"
    )
    with engine(base) as model:
        report = adapt(tmp_path / "task.yaml", out=tmp_path / "out", mode="sweep", model=model)
        measured = {name for name, rung in report.rungs.items() if rung["dev"]}
        if base.config.encoder is None:
            assert measured == {"floor"} and "reads texts" in report.rungs["lora"]["status"]
            return
        assert measured == {"floor", "zero", "lora"}
        (said,) = load_skin(tmp_path / "out" / "skins" / "lora", model).predict(["fox 3"])
        assert isinstance(said.value, str) and said.usage.completion_tokens > 0


def test_it_is_served(base: BaseModel, tmp_path: Path) -> None:
    from tests.serve.conftest import Running

    with engine(base) as model:
        server = Running(model, tmp_path)
        try:
            vectors = server.post("embeddings", input=["a film", "a meal"])
            assert vectors.status_code == 200 and len(vectors.json()["data"][0]["embedding"]) == 64
            said = server.post("completions", prompt="a great film", max_tokens=4)
            if base.config.encoder is None:
                assert said.status_code == 400 and "encoder" in said.json()["error"]["message"]
            else:
                assert said.status_code == 200 and said.json()["usage"]["completion_tokens"] <= 4
        finally:
            server.stop()


def test_an_encoder_fills_in(base: BaseModel) -> None:
    if base.config.encoder is not None:
        pytest.skip("an encoder-decoder writes")
    from transformers import AutoModelForMaskedLM

    reference = AutoModelForMaskedLM.from_pretrained(base.folder).eval()
    mask = base.tokenizer.raw.token_to_id(MASK)
    before, after = [5, 9, 40, 17], [33, 8]
    fillings = [[12], [44], [21, 60], [21, 61, 7]]
    with engine(base) as model:
        (found,) = model.score([ScoreRequest(context=[*before, mask, *after], continuations=fillings)])
        for tokens, score, greedy in zip(fillings, found.logprobs, found.greedy, strict=True):
            with torch.no_grad():
                ids = torch.tensor([[*before, *[mask] * len(tokens), *after]])
                rows = reference(ids).logits.log_softmax(-1)[0, len(before) :][: len(tokens)]
            assert score == pytest.approx(float(rows.gather(1, torch.tensor(tokens)[:, None]).sum()), abs=1e-4)
            assert greedy == (rows.argmax(-1).tolist() == tokens)
        assert found.tokens == [1, 1, 2, 3]
        for context in (before, [*before, mask, mask]):
            with pytest.raises(RequestError, match="once"):
                model.score([ScoreRequest(context=context, continuations=[[12]])])
        most = base.config.context_length
        long = [5, *[7, 8] * most, mask, 33]
        (cut,) = model.score([ScoreRequest(context=long, continuations=[[12]], truncate="left")])
        (same,) = model.score([ScoreRequest(context=long[-most:], continuations=[[12]])])
        assert cut.logprobs == same.logprobs and cut.usage.truncated_tokens == len(long) - most


def test_an_encoder_decoder_is_asked_without_turns(base: BaseModel) -> None:
    with engine(base) as model:
        asked = [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
        assert model.render_chat(asked) == "one\n\ntwo"
        told = model.render_chat([*asked, {"role": "assistant", "content": "three"}])
        assert told == "one\n\ntwothree<|im_end|>"
        (vector,) = model.features([FeatureRequest(text="one")])
        assert json.dumps(vector.vectors.shape) == "[1, 64]"
