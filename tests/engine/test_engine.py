"""The engine against the plain model: one forward pass without cache, batch or sharing for every number."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pando.engine import generation
from pando.engine.engine import Engine
from pando.engine.readings import Scoring
from pando.errors import ContextLengthError, PandoError, RequestError
from pando.interface import FeatureRequest, GenerateRequest, ScoreRequest
from pando.model.context import RowContext
from pando.model.lora import LoraConfig, TrainableLora, all_linear
from pando.model.peft import save_peft
from tests.tiny import tiny_engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with tiny_engine(tmp_path_factory.mktemp("base")) as made:
        yield made


@pytest.fixture(scope="module")
def adapters(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainableLora]:
    """Two random adapters by folder."""
    made = {}
    for seed in (1, 2):
        config = LoraConfig(4, 16, all_linear(engine.module))
        adapter = TrainableLora(engine.module, config, seed)
        with torch.no_grad():
            for b in adapter.b:
                b.normal_(0, 0.3, generator=torch.Generator().manual_seed(seed))
        folder = tmp_path_factory.mktemp(f"adapter{seed}")
        save_peft(folder, engine.module, config, adapter.tensors(), "tiny")
        made[str(folder)] = adapter
    return made


def _logits(engine: Engine, ids: list[int], adapter: TrainableLora | None = None) -> Tensor:
    tokens = torch.tensor([ids])
    with torch.no_grad():
        return engine.module.head(engine.module(tokens, RowContext(tokens, adapters=adapter)))[0]


def _prompts(count: int, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    shared = [draw.randrange(250) for _ in range(60)]
    return [
        shared[: draw.randrange(60)] + [draw.randrange(250) for _ in range(draw.randrange(1, 40))] for _ in range(count)
    ]


def _settled(engine: Engine) -> bool:
    """No block is left in use."""
    return engine.load["blocks_used"] == 0


def test_greedy_tokens_and_logprobs_are_those_of_the_plain_model(
    engine: Engine, adapters: dict[str, TrainableLora]
) -> None:
    skins = [None, *adapters]
    prompts = _prompts(24)
    requests = [
        GenerateRequest(prompt=p, max_tokens=12, logprobs=2, ignore_eos=True, skin=skins[i % 3])
        for i, p in enumerate(prompts)
    ]
    for request, found in zip(requests, engine.generate(requests), strict=True):
        adapter = adapters.get(request.skin or "")
        assert isinstance(request.prompt, list)
        logits = _logits(engine, request.prompt + found.tokens, adapter).log_softmax(-1)
        at = len(request.prompt) - 1
        assert found.tokens == logits[at:-1].argmax(-1).tolist()
        assert found.logprobs is not None
        for place, entry in enumerate(found.logprobs, start=at):
            assert entry.logprob == pytest.approx(float(logits[place, entry.token]), abs=1e-4)
            assert [t for t, _ in entry.top] == logits[place].topk(2).indices.tolist()
        assert found.finish_reason == "length"
    assert _settled(engine)


def test_scores_are_those_of_the_plain_model(engine: Engine, adapters: dict[str, TrainableLora]) -> None:
    draw = random.Random(3)
    skins = [None, *adapters]
    for i, prompt in enumerate(_prompts(12, seed=1)):
        branches = [[draw.randrange(4) for _ in range(draw.randrange(1, 5))] for _ in range(9)]
        skin = skins[i % 3]
        (found,) = engine.score([ScoreRequest(context=prompt, continuations=branches, skin=skin)])
        for branch, logprob, greedy, count in zip(branches, found.logprobs, found.greedy, found.tokens, strict=True):
            logits = _logits(engine, prompt + branch, adapters.get(skin or ""))[len(prompt) - 1 : -1].log_softmax(-1)
            expected = logits[torch.arange(len(branch)), torch.tensor(branch)].sum()
            assert logprob == pytest.approx(float(expected), abs=1e-3)
            assert greedy == (logits.argmax(-1).tolist() == branch)
            assert count == len(branch)
    assert _settled(engine)


def test_continuations_too_long_for_a_tree_are_read_on(
    engine: Engine, adapters: dict[str, TrainableLora], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scoring, "LIMIT", 40)
    context, skin = _prompts(1)[0], next(iter(adapters))
    draw = random.Random(3)
    long = [[draw.randrange(250) for _ in range(size)] for size in (5, 60, 3, 41)]
    best = _logits(engine, context, adapters[skin])[-1].argmax()
    wanted = []
    for one in long:
        ids = context + one
        rows = _logits(engine, ids, adapters[skin])[len(context) - 1 : -1].log_softmax(-1)
        wanted.append(float(rows.gather(1, torch.tensor(one)[:, None]).sum()))
    (found,) = engine.score([ScoreRequest(context=context, continuations=[*long, [int(best)]], skin=skin)])
    assert found.logprobs[:4] == pytest.approx(wanted, abs=1e-3)
    assert found.tokens == [5, 60, 3, 41, 1] and found.greedy == [False] * 4 + [True]
    assert found.usage.prompt_tokens == len(context) and found.usage.completion_tokens == 110
    assert _settled(engine)


def test_a_shared_context_is_computed_once(tmp_path: Path) -> None:
    with tiny_engine(tmp_path, context_length=512) as engine:
        shared = _prompts(1)[0] * 3
        found = engine.score([ScoreRequest(context=[*shared, i], continuations=[[1, 2]]) for i in range(20)])
        assert found[0].usage.cached_tokens == 0
        whole_blocks = len(shared) // 16 * 16
        assert all(answer.usage.cached_tokens == whole_blocks for answer in found[1:])


def test_cache_entries_of_one_adapter_are_never_used_for_another(
    engine: Engine, adapters: dict[str, TrainableLora]
) -> None:
    prompt = _prompts(1, seed=9)[0] + [7] * 40
    requests = [ScoreRequest(context=prompt, continuations=[[1], [2]], skin=skin) for skin in (None, *adapters)]
    first, second = engine.score(requests), engine.score(requests)
    for a, b in zip(first, second, strict=True):
        assert b.usage.cached_tokens > 0
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
    values = [answer.logprobs[0] for answer in first]
    assert len({round(value, 2) for value in values}) == 3


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_features_are_the_pooled_hidden_states(engine: Engine, pooling: Any) -> None:
    depth = len(engine.module.layers)
    for prompt in _prompts(6, seed=2):
        states: dict[int, Tensor] = {}
        tokens = torch.tensor([prompt])
        ctx = RowContext(tokens)
        ctx.observe = lambda layer, x, states=states: states.__setitem__(layer, x[0])
        with torch.no_grad():
            engine.module(tokens, ctx)
        (found,) = engine.features([FeatureRequest(text=prompt, layers=(*range(depth + 1), -1), pooling=pooling)])
        for layer, vector in zip((*range(depth + 1), depth), found.vectors, strict=True):
            expected = states[layer].mean(0) if pooling == "mean" else states[layer][-1]
            np.testing.assert_allclose(vector, expected.numpy(), atol=1e-4)


def test_both_poolings_come_of_one_pass(engine: Engine) -> None:
    text = "the cat sat on the mat. " * 3
    mean, last, both = engine.features(
        [FeatureRequest(text=text, layers=(1, 3), pooling=pooling, start=10) for pooling in ("mean", "last", "both")]
    )
    np.testing.assert_allclose(both.vectors, np.hstack((mean.vectors, last.vectors)), atol=1e-5)


def test_features_pool_only_what_comes_after_start(engine: Engine) -> None:
    head, text = "the cat sat on the mat. " * 3, "a dog and the other"
    (found,) = engine.features([FeatureRequest(text=head + text, start=len(head))])
    (again,) = engine.features([FeatureRequest(text=head + text, start=len(head))])
    ids = engine.base.tokenizer.encode(head + text)
    first = next(i for i, (_, end) in enumerate(engine.base.tokenizer.offsets(head + text)) if end > len(head))
    tokens = torch.tensor([ids])
    with torch.no_grad():
        expected = engine.module(tokens, RowContext(tokens))[0, first:].mean(0)
    np.testing.assert_allclose(found.vectors[0], expected.numpy(), atol=1e-4)
    np.testing.assert_allclose(again.vectors[0], expected.numpy(), atol=1e-4)
    assert again.usage.cached_tokens > 0


def test_embeddings_have_unit_length_and_keep_their_order(engine: Engine) -> None:
    vectors = engine.embed(["the cat", "a dog", "the cat"])
    assert vectors.shape == (3, 64) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[2], atol=1e-5)
    assert engine.embed([]).shape == (0, 64)


def test_a_seed_gives_the_same_sample_alone_and_in_a_crowd(engine: Engine) -> None:
    request = GenerateRequest(
        prompt=_prompts(1)[0], max_tokens=20, temperature=3.0, top_k=50, top_p=0.95, min_p=0.001, seed=11, n=3,
        presence_penalty=0.3, frequency_penalty=0.2, repetition_penalty=1.1,
    )  # fmt: skip
    alone = engine.generate([request])
    crowd = [replace(request, prompt=p, seed=i) for i, p in enumerate(_prompts(10))]
    together = engine.generate([*crowd[:5], request, *crowd[5:]])[15:18]
    assert [c.tokens for c in alone] == [c.tokens for c in together]
    assert len({tuple(c.tokens) for c in alone}) == 3
    assert [c.index for c in alone] == [0, 1, 2]
    assert engine.generate([replace(request, seed=12)])[0].tokens != alone[0].tokens


@pytest.mark.parametrize("filters", [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}])
def test_each_filter_at_its_limit_leaves_the_likeliest_token(engine: Engine, filters: dict[str, Any]) -> None:
    prompt = _prompts(1, seed=5)[0]
    greedy = engine.generate([GenerateRequest(prompt=prompt, max_tokens=8, ignore_eos=True)])[0]
    limited = GenerateRequest(prompt=prompt, max_tokens=8, temperature=5.0, ignore_eos=True, **filters)
    assert engine.generate([limited])[0].tokens == greedy.tokens


def test_sampling_follows_the_distribution(engine: Engine) -> None:
    prompt = _prompts(1, seed=6)[0]
    logits = _logits(engine, prompt)[-1] / 8.0
    expected = logits.softmax(-1)
    found = [
        c.tokens[0]
        for seed in range(12)
        for c in engine.generate([GenerateRequest(prompt=prompt, max_tokens=1, temperature=8.0, seed=seed, n=100)])
    ]
    top = expected.topk(5)
    for probability, token in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        spread = (probability * (1 - probability) / len(found)) ** 0.5
        assert abs(found.count(token) / len(found) - probability) < 5 * spread + 1e-3


def test_prompt_logprobs_cover_the_prompt(engine: Engine) -> None:
    prompt = _prompts(1, seed=7)[0] * 8
    prompt = prompt[:200]
    request = GenerateRequest(prompt=prompt, max_tokens=0, prompt_logprobs=1)
    (found,) = engine.generate([request])
    logits = _logits(engine, prompt).log_softmax(-1)
    assert found.tokens == [] and found.finish_reason == "length"
    assert found.prompt_logprobs is not None and found.prompt_logprobs[0] is None
    assert len(found.prompt_logprobs) == len(prompt)
    for place, entry in enumerate(found.prompt_logprobs[1:]):
        assert entry is not None
        assert entry.logprob == pytest.approx(float(logits[place, prompt[place + 1]]), abs=1e-4)


def test_stop_strings_end_the_text_before_them_and_are_never_streamed(engine: Engine) -> None:
    free = GenerateRequest(prompt="the cat", max_tokens=60, temperature=2.0, seed=1, ignore_eos=True)
    text = engine.generate([free])[0].text
    stop = text[10:13]
    cut = text.index(stop)
    ticket = engine.submit(replace(free, stop=[stop]))
    chunks = list(ticket.stream())
    (done,) = ticket.result()
    assert done.text == text[:cut] and done.finish_reason == "stop"
    assert "".join(chunk.text for chunk in chunks) == done.text
    assert chunks[-1].completion == done


def test_structured_answers_follow_their_grammar(engine: Engine) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "number": {"type": "integer", "maximum": 99}},
        "required": ["name", "number"],
        "additionalProperties": False,
    }
    options: dict[str, Any] = {"prompt": "the cat", "max_tokens": 80, "temperature": 1.0, "seed": 3}
    found = engine.generate(
        [
            GenerateRequest(schema=schema, **options),
            GenerateRequest(regex=r"[a-c]{3}-\d{2}", **options),
            GenerateRequest(choices=["red cat", "red", 'quo"te\n'], **options),
        ]
    )
    value = json.loads(found[0].text)
    assert set(value) == {"name", "number"} and isinstance(value["number"], int)
    assert len(found[1].text) == 6 and found[1].text[3] == "-"
    assert found[2].text in {"red cat", "red", 'quo"te\n'}
    assert all(answer.finish_reason == "stop" for answer in found)


def test_aborted_requests_end_and_free_their_blocks(engine: Engine) -> None:
    ticket = engine.submit(GenerateRequest(prompt="the cat", max_tokens=200, ignore_eos=True))
    next(ticket.stream())
    ticket.abort()
    (found,) = ticket.result(timeout=10)
    assert found.finish_reason == "abort" and len(found.tokens) < 200
    assert _settled(engine)


def test_closing_tells_everyone_who_waits(tmp_path: Path) -> None:
    engine = tiny_engine(tmp_path)
    tickets = [engine.submit(GenerateRequest(prompt=p, max_tokens=200, ignore_eos=True)) for p in _prompts(40)]
    asking = threading.Event()
    told: list[str] = []

    def ask() -> None:
        try:
            while True:
                ticket = engine.submit(GenerateRequest(prompt="a", max_tokens=1))
                asking.set()
                ticket.result(timeout=30)
        except PandoError as error:
            told.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    asking.wait()
    engine.close()
    for thread in threads:
        thread.join(timeout=30)
    assert told == ["the model was closed"] * 4
    for ticket in tickets:
        with pytest.raises(PandoError, match="was closed"):
            ticket.result(timeout=0)


@pytest.mark.real
def test_a_grammar_that_outgrows_its_limits_is_an_error_and_no_end(real_model: Engine) -> None:
    """With a real vocabulary llguidance gives up after a few tokens, and allows the end alone from there on."""
    regex = "([a-z ]*e[a-z ]{200}|[a-z ]*t[a-z ]{150}|[a-z ]*a[a-z ]{170})z"
    with pytest.raises(RequestError, match="regex is too complex to be followed further") as refused:
        real_model.generate([GenerateRequest(prompt="a", regex=regex, max_tokens=100)])
    assert refused.value.param == "regex"
    assert real_model.generate([GenerateRequest(prompt="a", choices=["b"])])[0].text == "b"


def test_many_threads_and_a_cache_too_small_for_all(tmp_path: Path) -> None:
    with tiny_engine(tmp_path, cache_tokens=300) as engine:
        prompts = _prompts(16, seed=8)
        requests = [GenerateRequest(prompt=p, max_tokens=20, ignore_eos=True) for p in prompts]
        expected = [engine.generate([request])[0].tokens for request in requests]
        found: dict[int, list[int]] = {}

        def ask(i: int) -> None:
            found[i] = engine.generate([requests[i]])[0].tokens

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert [found[i] for i in range(16)] == expected
        assert _settled(engine)


def test_samples_that_make_room_for_others_end_as_if_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "_AHEAD", 16)
    backs: list[int] = []
    put_back = generation.Generation.put_back

    def noted(self: generation.Generation) -> None:
        backs.append(len(self.tokens) - self.given)
        put_back(self)

    monkeypatch.setattr(generation.Generation, "put_back", noted)
    options: list[dict[str, Any]] = [{}, {"temperature": 1.0, "seed": 3, "n": 2}, {"prompt_logprobs": 1, "logprobs": 1}]
    with tiny_engine(tmp_path, cache_tokens=300) as engine:
        requests = [
            GenerateRequest(prompt=[i, *range(40)], max_tokens=150, ignore_eos=True, **options[i % 3]) for i in range(6)
        ]
        alone = [engine.generate([request])[0] for request in requests]
        backs.clear()
        tickets = [engine.submit(request) for request in requests]
        found = [ticket.result()[0] for ticket in tickets]
        assert len(backs) > 2 and max(backs) > 16
        for one, other in zip(alone, found, strict=True):
            assert one.tokens == other.tokens and one.prompt_tokens == other.prompt_tokens
            assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
            for mine, theirs in ((one.logprobs, other.logprobs), (one.prompt_logprobs, other.prompt_logprobs)):
                assert (mine is None) == (theirs is None) and len(mine or []) == len(theirs or [])
                for a, b in zip(mine or [], theirs or [], strict=True):
                    assert (a is None) == (b is None)
                    assert (
                        a is None or b is None or (a.token, a.logprob) == (b.token, pytest.approx(b.logprob, abs=1e-3))
                    )
        assert _settled(engine) and engine._cache.pools[None].promised == 0


def test_a_prompt_whose_reading_made_room_is_told_of_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "_AHEAD", 16)
    read: list[int] = []
    put_back = generation.Generation.put_back

    def noted(self: generation.Generation) -> None:
        read.append(self.computed)
        put_back(self)

    monkeypatch.setattr(generation.Generation, "put_back", noted)
    with tiny_engine(tmp_path, cache_tokens=300) as engine:
        engine._scheduler.budget = 4  # beside an answer under way a prompt is read token by token
        answer = GenerateRequest(prompt=[*range(41)], max_tokens=200, ignore_eos=True)
        told = GenerateRequest(prompt=[*range(60, 210)], max_tokens=4, ignore_eos=True, prompt_logprobs=1)
        tickets = [engine.submit(request) for request in (answer, told)]
        found = tickets[1].result()[0]
        assert tickets[0].result()[0].tokens and read and 0 < read[0] < 150
        (alone,) = engine.generate([told])
        mine, theirs = (one.prompt_logprobs or [] for one in (found, alone))
        assert [one and one.token for one in mine] == [one and one.token for one in theirs] == [None, *range(61, 210)]


def test_too_long_is_an_error_with_both_numbers_unless_cutting_is_asked_for(engine: Engine) -> None:
    long = [5] * 400
    with pytest.raises(ContextLengthError, match=r"400 tokens.*256"):
        engine.submit(GenerateRequest(prompt=long))
    with pytest.raises(ContextLengthError, match=r"401 tokens.*256"):  # the last one is only predicted
        engine.submit(ScoreRequest(context=long, continuations=[[1, 2]]))
    (brim,) = engine.score([ScoreRequest(context=[5] * 255, continuations=[[1, 2], [3]])])
    assert brim.tokens == [2, 1] and brim.usage.truncated_tokens == 0
    (cut,) = engine.generate([GenerateRequest(prompt=long, max_tokens=10, truncate="left", ignore_eos=True)])
    assert cut.usage.truncated_tokens == 400 - 246 and len(cut.tokens) == 10
    fitting = GenerateRequest(prompt=[5] * 200, max_tokens=256, truncate="left", ignore_eos=True)
    (whole,) = engine.generate([fitting])
    assert whole.usage.truncated_tokens == 0 and len(whole.tokens) == 56
    (half,) = engine.generate([replace(fitting, prompt=long)])
    assert half.usage.truncated_tokens == 400 - 128 and len(half.tokens) == 128
    (score,) = engine.score([ScoreRequest(context=long, continuations=[[1, 2]], truncate="left")])
    assert score.usage.truncated_tokens == 400 - 255
    (full,) = engine.generate([GenerateRequest(prompt=[5] * 250, max_tokens=100, ignore_eos=True)])
    assert len(full.tokens) == 6 and full.finish_reason == "length"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (GenerateRequest(), "prompt"),
        (GenerateRequest(prompt="a", messages=[]), "prompt"),
        (GenerateRequest(prompt=""), "prompt"),
        (GenerateRequest(prompt=[100_000]), "prompt"),
        (GenerateRequest(prompt="a", temperature=-1), "temperature"),
        (GenerateRequest(prompt="a", temperature=float("nan")), "temperature"),
        (GenerateRequest(prompt="a", n=0), "n"),
        (GenerateRequest(prompt="a", top_p=0), "top_p"),
        (GenerateRequest(prompt="a", regex="("), "regex"),
        (GenerateRequest(prompt="a", schema={"type": "wrong"}), "schema"),
        (GenerateRequest(prompt="a", choices=[]), "choices"),
        (GenerateRequest(prompt="a", regex="a", choices=["a"]), "schema"),
        (GenerateRequest(prompt="a", skin="/nowhere"), "skin"),
        (ScoreRequest(context="a", continuations=[]), "continuations"),
        (ScoreRequest(context="a", continuations=[""]), "continuations"),
        (ScoreRequest(context="", continuations=["a"]), "context"),
        (FeatureRequest(text="a", layers=(9,)), "layers"),
        (FeatureRequest(text="", layers=(0,)), "text"),
    ],
)
def test_wrong_fields_are_named(engine: Engine, request_: Any, field: str) -> None:
    with pytest.raises(RequestError) as caught:
        engine.submit(request_)
    assert caught.value.param == field
    assert _settled(engine)
