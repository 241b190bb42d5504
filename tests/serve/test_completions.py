from __future__ import annotations

import numpy as np
import pytest

from tests.serve.conftest import Running
from tests.serve.test_chat import events


def test_the_shape_that_lm_eval_scores_with(server: Running) -> None:
    """Token-id prompts, echo, one generated token: every token of the prompt but the first has a log-probability."""
    prompts = [list(b"hello there"), list(b"another one, longer")]
    answer = server.openai.completions.create(
        model="fake", prompt=prompts, echo=True, logprobs=1, max_tokens=1, temperature=0, seed=1234
    )
    for index, (prompt, choice) in enumerate(zip(prompts, answer.choices, strict=True)):
        found = choice.logprobs
        assert choice.index == index and found and found.token_logprobs and found.tokens and found.text_offset
        assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs or []) == len(prompt) + 1
        assert "".join(found.tokens[:-1]) == bytes(prompt).decode() and choice.text.startswith(bytes(prompt).decode())
        assert found.token_logprobs[0] is None and (found.top_logprobs or [0])[0] is None
        assert found.text_offset == list(range(len(prompt) + 1))
        model = server.model
        for i in range(1, len(prompt)):
            expected = model._logprobs(prompt[:i], None)
            assert found.token_logprobs[i] == pytest.approx(expected[prompt[i]])
            top = (found.top_logprobs or [])[i]
            assert max(top.values()) == pytest.approx(expected.max()) and found.tokens[i] in top


def test_lm_eval_reads_it(server: Running) -> None:
    """The very parser of lm-eval's local-completions."""
    parser = pytest.importorskip("lm_eval.models.openai_completions").LocalCompletionsAPI.parse_logprobs
    context, continuation = list(b"some context"), list(b" and so on")
    sent = dict(prompt=[context + continuation], temperature=0, max_tokens=1, logprobs=1, seed=1234, echo=True)
    ((logprob, greedy),) = parser(server.post("completions", **sent).json(), [context + continuation], [len(context)])
    whole = context + continuation
    sums = [server.model._logprobs(whole[:i], None)[whole[i]] for i in range(len(context), len(whole))]
    assert logprob == pytest.approx(sum(sums)) and greedy is False


def test_zero_tokens_score_the_prompt_alone(server: Running) -> None:
    answer = server.openai.completions.create(model="fake", prompt="abc", echo=True, logprobs=0, max_tokens=0)
    (choice,) = answer.choices
    assert choice.text == "abc" and choice.finish_reason == "length"
    assert choice.logprobs and choice.logprobs.tokens == ["a", "b", "c"]
    assert [set(top) for top in (choice.logprobs.top_logprobs or [])[1:]] == [{"b"}, {"c"}]
    assert answer.usage and answer.usage.completion_tokens == 0 and answer.usage.total_tokens == 3


def test_batches_and_samples_are_numbered_in_order(server: Running) -> None:
    asked = dict(model="fake", prompt=["one", "two"], n=2, max_tokens=6, temperature=1, seed=5)
    whole = server.openai.completions.create(**asked)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    alone = server.openai.completions.create(**(asked | {"prompt": "two"}))
    assert [choice.text for choice in alone.choices] == [choice.text for choice in whole.choices[2:]]
    texts = [""] * 4
    for chunk in server.openai.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    assert whole.usage and whole.usage.prompt_tokens == 6  # a prompt counts once, however many samples


def test_a_stream_echoes_and_ends_with_the_usage(server: Running) -> None:
    body = {"prompt": list(b"abc"), "max_tokens": 3, "temperature": 0, "echo": True, "stream": True, "ignore_eos": True}
    found = events(server.post("completions", **body, stream_options={"include_usage": True}))
    assert found[0]["choices"][0]["text"] == "abc"
    assert found[-2]["choices"][0]["finish_reason"] == "length"
    assert found[-1]["usage"]["completion_tokens"] == 3 and found[-1]["choices"] == []


def test_streamed_logprobs_are_those_of_the_whole(server: Running) -> None:
    asked = {"prompt": "xyz", "max_tokens": 5, "temperature": 0, "logprobs": 2, "ignore_eos": True}
    whole = server.post("completions", **asked).json()["choices"][0]["logprobs"]
    parts = [e["choices"][0]["logprobs"] for e in events(server.post("completions", **asked, stream=True))]
    joined = {key: [x for part in parts if part for x in part[key]] for key in whole}
    assert joined == whole


def test_stops_cut_and_are_not_part_of_the_answer(server: Running) -> None:
    free = server.post("completions", prompt="q", max_tokens=30, temperature=0, ignore_eos=True).json()["choices"][0]
    stop = free["text"][4:6]
    cut = server.post("completions", prompt="q", max_tokens=30, temperature=0, ignore_eos=True, stop=[stop, "###"])
    (choice,) = cut.json()["choices"]
    assert choice["text"] == free["text"][: free["text"].find(stop)] and choice["finish_reason"] == "stop"


def test_tokens_that_are_parts_of_characters_keep_their_bytes(server: Running) -> None:
    (choice,) = server.post("completions", prompt="é!", echo=True, logprobs=0, max_tokens=0).json()["choices"]
    assert choice["logprobs"]["tokens"] == ["bytes:\\xc3", "bytes:\\xa9", "!"]
    assert choice["logprobs"]["text_offset"] == [0, 0, 1] and choice["text"] == "é!"


def test_logprobs_are_numbers_that_json_has(server: Running) -> None:
    server.model._logprobs = lambda context, skin: np.full(257, -np.inf)
    (choice,) = server.post("completions", prompt="a", max_tokens=1, logprobs=1, temperature=0).json()["choices"]
    assert choice["logprobs"]["token_logprobs"] == [-9999.0]
