"""The official OpenAI client against `pando serve` on the real base: every route, streams, scores, errors, accounts.

Numbers are compared with transformers and with lm-eval's own `local-completions`. Names of parts run only those.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from serving import ASK, BASE, KEY, Bench, make_skins, serving

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is on this machine
CLOSE = 1e-3  # nats
TEXT = "The quick brown fox jumps over the lazy dog. Naïve façades in 東京 cost €5."
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer"},
        "tall": {"type": "boolean"},
    },
    "required": ["name", "age", "tall"],
    "additionalProperties": False,
}


def models(b: Bench) -> str:
    """models: the base first, each one retrievable"""
    listed = [model.id for model in b.client.models.list()]
    assert listed == [BASE, *sorted(skin.name for skin in b.skins)], listed
    assert all(b.client.models.retrieve(name).id == name for name in listed)
    return f"{len(listed)} models"


def chat(b: Bench) -> str:
    """chat: roles, parts, usage, finish reason"""
    answer = b.chat(messages=[{"role": "system", "content": "Be brief."}, *ASK])
    assert answer.choices[0].message.content and answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    parts = [{"role": "user", "content": [{"type": "text", "text": ASK[0]["content"]}]}]
    assert b.chat(messages=parts).choices[0].message == b.chat().choices[0].message
    return repr(answer.choices[0].message.content[:40])


def chat_stream(b: Bench) -> str:
    """chat stream: says what the whole says, piece by piece, with the same usage"""
    for more in ({}, {"temperature": 0.8, "seed": 7, "n": 2}, {"stop": ["\n", ","]}, {"logprobs": True}):
        whole = b.chat(**more)
        texts: dict[int, str] = {}
        usage, pieces = None, 0
        for chunk in b.chat(**more, stream=True, stream_options={"include_usage": True}):
            for choice in chunk.choices:
                texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
                pieces += bool(choice.delta.content)
            usage = chunk.usage or usage
        assert texts == {choice.index: choice.message.content for choice in whole.choices}, more
        assert usage.completion_tokens == whole.usage.completion_tokens and pieces > 2
    return f"4 ways, {pieces} pieces in the last"


def sampling(b: Bench) -> str:
    """sampling: a seed repeats, another differs, stop cuts, n gives n"""
    hot = {"temperature": 1.2, "max_tokens": 24}
    one, again, other = (b.chat(**hot, seed=seed).choices[0].message.content for seed in (1, 1, 2))
    assert one == again != other
    free = b.complete(TEXT, max_tokens=24).choices[0].text
    stop = free.strip()[5:9]
    cut = b.complete(TEXT, max_tokens=24, stop=stop).choices[0]
    assert cut.text == free[: free.find(stop)] and cut.finish_reason == "stop"
    assert len({choice.message.content for choice in b.chat(**hot, n=4, seed=1).choices}) == 4
    return "same seed, same answer"


def echo(b: Bench) -> str:
    """completions: echo with logprobs, of texts and of token ids, in a batch"""
    tokenized = b.model.base.tokenizer.encode(TEXT)
    plain, ids = (b.complete(p, echo=True, logprobs=2, max_tokens=1).choices[0] for p in (TEXT, tokenized))
    found = plain.logprobs
    assert plain.text.startswith(TEXT) and ids.text == plain.text
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(tokenized) + 1
    assert found.token_logprobs[0] is None and found.text_offset == sorted(found.text_offset)
    together = b.complete([tokenized, tokenized[:5], tokenized], echo=True, logprobs=1, max_tokens=1).choices
    for choice, length in zip(together, (len(tokenized), 5, len(tokenized)), strict=True):
        pairs = zip(choice.logprobs.token_logprobs[1:length], found.token_logprobs[1:length], strict=True)
        assert max(abs(x - y) for x, y in pairs) < CLOSE
    scored = b.complete(TEXT, echo=True, logprobs=0, max_tokens=0).choices[0]
    assert scored.text == TEXT and len(scored.logprobs.tokens) == len(tokenized)
    return f"{len(tokenized)} tokens, alone and in a batch"


def batches(b: Bench) -> str:
    """batches: prompts in order, each the same as alone, streamed too"""
    prompts = [f"{n} plus {n} is" for n in range(1, 9)]
    alone = [b.complete(prompt).choices[0].text for prompt in prompts]
    together = b.complete(prompts)
    assert [choice.text for choice in together.choices] == alone
    texts = [""] * len(prompts)
    for chunk in b.complete(prompts, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == alone
    return f"{len(prompts)} prompts"


def embeddings(b: Bench) -> str:
    """embeddings: batches, as numbers and as base64, of unit length"""
    import numpy as np

    texts = ["a cat", "a dog", TEXT]
    base64, plain = (
        b.count(b.client.embeddings.create(model=BASE, input=texts, **form))
        for form in ({}, {"encoding_format": "float"})
    )
    vectors = np.array([entry.embedding for entry in plain.data])
    assert np.allclose([entry.embedding for entry in base64.data], vectors, atol=1e-6)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert b.refused("BadRequestError", lambda: b.client.embeddings.create(model=BASE, input="x", dimensions=8)).param
    return f"{vectors.shape[1]} numbers each"


def schema(b: Bench) -> str:
    """JSON schema: every answer follows it, streamed too; json_object is an object"""
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    for more in ({"temperature": 0}, {"temperature": 1.5, "seed": 3, "n": 4}):
        for choice in b.chat(response_format=form, max_tokens=80, **more).choices:
            found = json.loads(choice.message.content)
            assert list(found) == ["name", "age", "tall"], found
            assert [type(value) for value in found.values()] == [str, int, bool], found
    pieces = b.chat(response_format=form, max_tokens=80, stream=True)
    assert json.loads("".join(chunk.choices[0].delta.content or "" for chunk in pieces if chunk.choices))
    answer = b.chat(response_format={"type": "json_object"}, max_tokens=60).choices[0]
    assert answer.finish_reason == "length" or isinstance(json.loads(answer.message.content), dict)
    wrong = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    assert b.refused("BadRequestError", lambda: b.chat(response_format=wrong)).param == "response_format"
    return "6 answers follow it"


def errors(b: Bench) -> str:
    """errors: the client raises the class that belongs to each, with code and field"""
    import openai

    nobody = openai.OpenAI(base_url=b.url, api_key="wrong", max_retries=0)
    long = "word " * 9000
    cases = [
        ("AuthenticationError", "invalid_api_key", None, lambda: nobody.models.list()),
        ("NotFoundError", "model_not_found", "model", lambda: b.chat(model="gpt-4")),
        ("NotFoundError", "model_not_found", "model", lambda: list(b.chat(model="gpt-4", stream=True))),
        ("BadRequestError", "context_length_exceeded", "prompt", lambda: b.complete(long)),
        ("BadRequestError", "context_length_exceeded", "messages", lambda: list(
            b.chat(messages=[{"role": "user", "content": long}], stream=True))),
        ("BadRequestError", "unsupported_parameter", "logit_bias", lambda: b.chat(logit_bias={"1": 5})),
        ("BadRequestError", "unsupported_parameter", "tools", lambda: b.chat(tools=[{"type": "function"}])),
        ("BadRequestError", "unknown_parameter", "temprature", lambda: b.chat(extra_body={"temprature": 1})),
        ("BadRequestError", "invalid_value", "temperature", lambda: b.chat(temperature=3)),
        ("BadRequestError", "invalid_value", "prompt", lambda: b.complete([10**7])),
        ("APIStatusError", "body_too_large", None, lambda: b.complete("x" * (10 << 20))),
    ]  # fmt: skip
    for kind, code, param, call in cases:
        error = b.refused(kind, call)
        assert (error.code, error.param) == (code, param), (kind, error)
        if code == "context_length_exceeded":
            assert "8192" in str(error) and "90" in str(error), error
    return f"{len(cases)} errors"


def skins(b: Bench) -> str:
    """skins: chat and classify answer as the skin predicts, from the same process as the base"""
    import httpx

    texts = ["I love this!", "This is awful.", "What a wonderful day"]
    for skin in b.skins:
        expected = skin.predict(texts, b.model)
        for text, prediction in zip(texts, expected, strict=True):
            asked = [{"role": "user", "content": text}]
            answer = b.chat(model=skin.name, messages=asked)
            assert answer.choices[0].message.content == prediction.value, (skin.name, text)
            assert abs(answer.pando["confidence"] - prediction.confidence) < CLOSE
            pieces = b.chat(model=skin.name, messages=asked, stream=True)
            assert "".join(c.choices[0].delta.content or "" for c in pieces) == prediction.value
        sent = {"model": skin.name, "input": texts}
        found = httpx.post(
            f"{b.url}/classify", json=sent, headers={"Authorization": f"Bearer {KEY}"}, timeout=60
        ).json()
        assert [entry["label"] for entry in found["data"]] == [prediction.value for prediction in expected]
    return f"{len(b.skins)} skins"


def reuse(b: Bench) -> str:
    """usage: a prompt that was read before is counted as cached"""
    prompt = " ".join(f"fact {n}: {n * n}." for n in range(80))
    first, second = (b.complete(prompt, max_tokens=2).usage for _ in range(2))
    assert first.prompt_tokens_details.cached_tokens == 0
    share = second.prompt_tokens_details.cached_tokens / second.prompt_tokens
    assert share > 0.9
    return f"{share:.0%} of the second prompt"


def together(b: Bench) -> str:
    """many at once: 12 greedy callers get what each gets alone; the async client too"""
    prompts = [f"A short story about {what} begins" for what in ("cat", "dog", "sea", "sun", "owl", "bee")] * 2
    alone = {prompt: b.complete(prompt, max_tokens=12).choices[0].text for prompt in set(prompts)}
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda prompt: b.complete(prompt, max_tokens=12).choices[0].text, prompts))
    assert found == [alone[prompt] for prompt in prompts]
    assert asyncio.run(_async_story(b, prompts[:4])) == found[:4]
    return "12 callers"


async def _async_story(b: Bench, prompts: list[str]) -> list[str]:
    import openai

    async with openai.AsyncOpenAI(base_url=b.url, api_key=KEY, max_retries=0) as client:
        sent = [client.completions.create(model=BASE, prompt=p, max_tokens=12, temperature=0) for p in prompts]
        return [b.count(answer).choices[0].text for answer in await asyncio.gather(*sent)]


def leaving(b: Bench) -> str:
    """leaving: a caller that closes its stream frees the engine at once"""
    stream = b.chat(stream=True, max_tokens=2000, extra_body={"ignore_eos": True})
    for _ in range(4):
        next(stream)
    stream.close()
    begin = time.monotonic()
    while _gauge(b, "pando_num_requests_running") or _gauge(b, "pando_calls_under_way"):
        assert time.monotonic() - begin < 10, "it goes on"
        time.sleep(0.02)
    return f"{time.monotonic() - begin:.2f} s"


def overload(b: Bench) -> str:
    """overload: over the queue's bound calls get 429, the client's own retries bring all through"""
    import openai

    stubborn = openai.OpenAI(base_url=b.url, api_key=KEY, max_retries=300, timeout=300)
    before = _gauge(b, "pando_requests_refused_total")

    def ask(n: int) -> Any:
        return b.count(stubborn.completions.create(model=BASE, prompt=f"{n} is", max_tokens=8, temperature=0))

    with ThreadPoolExecutor(60) as pool:
        answers = list(pool.map(ask, range(60)))
    refused = int(_gauge(b, "pando_requests_refused_total") - before)
    assert len(answers) == 60 and refused > 0
    return f"60 answered, 429 said {refused} times"


def against_transformers(b: Bench) -> str:
    """transformers: the same log-probabilities, greedy answers and embeddings"""
    import numpy as np
    import torch

    model, tokenizer = b.reference
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        out = model(ids, output_hidden_states=True)
    expected = out.logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].numpy()
    found = b.complete(TEXT, echo=True, logprobs=1, max_tokens=0).choices[0].logprobs.token_logprobs[1:]
    worst = float(np.abs(np.array(found) - expected).max())
    assert worst < CLOSE, worst
    mean = out.hidden_states[-1][0].mean(0).numpy()
    vector = b.count(b.client.embeddings.create(model=BASE, input=TEXT)).data[0].embedding
    assert np.allclose(vector, mean / np.linalg.norm(mean), atol=1e-4)
    text = tokenizer.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    greedy = model.generate(prompt, max_new_tokens=48, do_sample=False)[0, prompt.shape[1] :]
    said = tokenizer.decode(greedy, skip_special_tokens=True)
    assert b.chat(max_tokens=48).choices[0].message.content == said
    return f"worst difference {worst:.0e} nats over {len(found)} tokens"


def against_lm_eval(b: Bench) -> str:
    """lm-eval: its local-completions over our server scores as transformers does"""
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    os.environ["OPENAI_API_KEY"] = KEY
    model, tokenizer = b.reference
    api = LocalCompletionsAPI(
        model=BASE,
        base_url=f"{b.url}/completions",
        tokenizer=str(b.folder),
        tokenizer_backend="huggingface",
        batch_size=4,
    )
    pairs = [
        (TEXT, " It rains."),
        ("One two three", " four"),
        ("The sky is", " blue"),
        ("The sky is", " made of stone"),
    ]
    asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    worst = 0.0
    for (context, continuation), (found, greedy) in zip(pairs, api.loglikelihood(asked), strict=True):
        ids = tokenizer(context + continuation, return_tensors="pt").input_ids
        start = len(tokenizer(context).input_ids)
        with torch.no_grad():
            logprobs = model(ids).logits[0].log_softmax(-1)
        each = [logprobs[i - 1, ids[0, i]].item() for i in range(start, ids.shape[1])]
        likeliest = all(logprobs[i - 1].argmax() == ids[0, i] for i in range(start, ids.shape[1]))
        worst = max(worst, abs(sum(each) - found))
        assert bool(greedy) == likeliest, (context, continuation)
    assert worst < CLOSE, worst
    return f"worst difference {worst:.0e} nats over {len(pairs)} pairs"


def accounts(b: Bench) -> str:
    """ledger: a line for each call, by its id, with the tokens that the caller was told"""
    done = subprocess.run(
        [sys.executable, "-m", "pando", "ledger", "--json"], capture_output=True, text=True, check=True
    )
    lines = {line["id"]: line for line in json.loads(done.stdout)}
    known = [answer for answer in b.counted if getattr(answer, "id", None)]
    assert known and KEY not in done.stdout
    for answer in known:
        line = lines[answer.id]
        told = (answer.usage.prompt_tokens, getattr(answer.usage, "completion_tokens", 0))
        assert (line["prompt_tokens"], line["completion_tokens"]) == told, line
        assert line["key"].startswith("key-") and line["detail"]["status"] == "success"
        assert line["usd"] > 0 and line["compute_seconds"] > 0
    assert [line for line in lines.values() if line["detail"]["status"] == "cancelled"]
    return f"{len(known)} calls found again among {len(lines)} lines"


CHECKS = (
    models, chat, chat_stream, sampling, echo, batches, embeddings, schema, errors, skins, reuse, together, leaving,
    overload, against_transformers, against_lm_eval, accounts,
)  # fmt: skip


def _gauge(b: Bench, name: str) -> float:
    import httpx

    root = b.url.removesuffix("/v1")
    text = httpx.get(f"{root}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(f"{name} ")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=", ".join(check.__name__ for check in CHECKS))
    parts = parser.parse_args().parts
    import pando

    with tempfile.TemporaryDirectory() as folder:
        os.environ["PANDO_LEDGER"] = f"sqlite:///{folder}/ledger.sqlite"
        model = pando.load(BASE)
        made = make_skins(Path(folder, "skins"), model.identity)
        failed, checks = [], [check for check in CHECKS if check.__name__ in parts or not parts]
        with serving(Path(folder, "skins"), 24) as (_, url):
            bench = Bench(url, made, model)
            for check in checks:
                begin = time.monotonic()
                try:
                    said = check(bench)
                except Exception as error:
                    traceback.print_exc()
                    said = f"FAILS: {error!r:.300}"
                    failed.append(check.__name__)
                print(f"{check.__doc__}: {said} ({time.monotonic() - begin:.1f} s)", flush=True)
    print(f"{len(checks) - len(failed)} of {len(checks)} parts hold" + (f"; not {', '.join(failed)}" if failed else ""))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
