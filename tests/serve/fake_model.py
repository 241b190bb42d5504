"""A deterministic language model over bytes, with a thread per request, that can be told to wait."""

from __future__ import annotations

import json
import queue
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from pando.errors import ContextLengthError, RequestError
from pando.interface import (
    Capabilities,
    Chunk,
    Completion,
    FeatureRequest,
    Features,
    GenerateRequest,
    Identity,
    Latency,
    Message,
    Request,
    ScoreRequest,
    Scores,
    TokenLogprob,
    Usage,
)

END = 256
WIDTH = 8


class FakeHandle:
    def __init__(self) -> None:
        self.aborted = threading.Event()
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._chunks: queue.SimpleQueue[Chunk | None] = queue.SimpleQueue()
        self._callbacks: list[Callable[[Any], None]] = []
        self._answer: Any = None
        self._error: Exception | None = None

    def result(self, timeout: float | None = None) -> Any:
        if not self._done.wait(timeout):
            raise TimeoutError
        if self._error:
            raise self._error
        return self._answer

    def stream(self) -> Iterator[Chunk]:
        while (chunk := self._chunks.get()) is not None:
            yield chunk
        if self._error:
            raise self._error

    def abort(self) -> None:
        self.aborted.set()

    def done(self) -> bool:
        return self._done.is_set()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        with self._lock:
            if not self._done.is_set():
                self._callbacks.append(callback)
                return
        callback(self)

    def push(self, chunk: Chunk) -> None:
        self._chunks.put(chunk)

    def finish(self, answer: Any = None, error: Exception | None = None) -> None:
        with self._lock:
            self._answer, self._error = answer, error
            self._done.set()
        self._chunks.put(None)
        for callback in self._callbacks:
            callback(self)


class FakeModel:
    """Attributes: `seconds_per_token` slows it, `broken` makes every answer fail, `running` counts requests."""

    identity = Identity(name="fake", hash="sha256:" + "f" * 64, source="tests")
    capabilities = Capabilities(score=True, features=True, embed=True, adapters=True, grammar=True, chat=True)
    context_length = 256
    dtype = "float32"

    def __init__(self) -> None:
        self.seconds_per_token = 0.0
        self.broken = False
        self.fails_after: int | None = None  # tokens
        self.running = 0
        self.busy_seconds = 0.5
        self.requests: list[Request] = []
        self._lock = threading.Lock()

    @property
    def load(self) -> dict[str, int]:
        return {"running": self.running, "waiting": 0, "blocks_used": 1, "blocks": 4}

    def submit(self, request: Request) -> FakeHandle:
        handle = FakeHandle()
        work = {GenerateRequest: self._generate, ScoreRequest: self._score, FeatureRequest: self._features}
        prepared = work[type(request)](request, handle)  # type: ignore[operator]
        with self._lock:
            self.running += 1
            self.requests.append(request)
        threading.Thread(target=self._run, args=[prepared, handle], daemon=True).start()
        return handle

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        return [completion for request in requests for completion in self.submit(request).result()]

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores]:
        return [self.submit(request).result() for request in requests]

    def features(self, requests: Sequence[FeatureRequest]) -> list[Features]:
        return [self.submit(request).result() for request in requests]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        found = np.stack([f.vectors[0] for f in self.features([FeatureRequest(text=text) for text in texts])])
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def count_tokens(self, text: str) -> int:
        return len(text.encode())

    def token_bytes(self, tokens: Sequence[int]) -> list[bytes]:
        return [b"<end>" if token == END else bytes([token]) for token in tokens]

    def render_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        turns = "".join(f"{message['role']}: {message['content']}\n" for message in messages)
        return turns + ("assistant: " if add_generation_prompt else "")

    def close(self) -> None:
        pass

    def _run(self, prepared: Callable[[], Any], handle: FakeHandle) -> None:
        try:
            answer, error = prepared(), None
        except Exception as caught:
            answer, error = None, caught
        with self._lock:
            self.running -= 1
        handle.finish(answer, error)

    def _ids(self, source: Any, room: int = 0, field: str = "prompt") -> list[int]:
        ids = list(source.encode()) if isinstance(source, str) else list(source)
        if any(id_ > END for id_ in ids):
            raise RequestError(f"{field} has a token id outside 0..{END}", field)
        if not ids:
            raise RequestError(f"{field} has no tokens", field)
        if len(ids) + room > self.context_length:
            raise ContextLengthError(len(ids) + room, self.context_length, field)
        return ids

    def _logprobs(self, context: Sequence[int], skin: str | None) -> np.ndarray:
        seed = zlib.crc32(bytes(token % 256 for token in context[-6:]), zlib.crc32((skin or "").encode()))
        logits = np.random.default_rng(seed).normal(size=END + 1)
        logits[ord("a") : ord("z") + 1] += 4
        logits[END] += 2
        return logits - np.log(np.exp(logits).sum())

    def _entry(self, logprobs: np.ndarray, token: int, top: int) -> TokenLogprob:
        best = np.argsort(-logprobs)[:top]
        return TokenLogprob(token, float(logprobs[token]), tuple((int(i), float(logprobs[i])) for i in best))

    def _generate(self, request: GenerateRequest, handle: FakeHandle) -> Callable[[], Any]:
        if request.messages is not None:
            prompt = self._ids(self.render_chat(request.messages), field="messages")
        else:
            prompt = self._ids(request.prompt, min(request.max_tokens, 1))

        def work() -> list[Completion]:
            return [self._sample(request, handle, prompt, index) for index in range(request.n)]

        return work

    def _sample(self, request: GenerateRequest, handle: FakeHandle, prompt: list[int], index: int) -> Completion:
        tokens, text, reason, logprobs = list(prompt), "", "length", []
        forced = list(_instance(request).encode())
        limit = min(request.max_tokens, self.context_length - len(prompt))
        seed = 0 if request.seed is None else request.seed % 2**31
        stops = [request.stop] if isinstance(request.stop, str) else list(request.stop)
        started = time.perf_counter()
        while len(tokens) - len(prompt) < limit:
            if handle.aborted.wait(self.seconds_per_token):
                reason = "abort"
                break
            if self.broken or (self.fails_after is not None and len(tokens) - len(prompt) >= self.fails_after):
                raise ValueError("the model broke")
            known = self._logprobs(tokens, request.skin)
            noise = np.random.default_rng([seed, index, len(tokens)]).gumbel(size=END + 1)
            token = int(np.argmax(known + request.temperature * noise))
            if forced:
                token = forced.pop(0)
            elif request.schema is not None:
                token = END
            tokens.append(token)
            entry = None if request.logprobs is None else self._entry(known, token, request.logprobs)
            logprobs.append(entry)
            if token == END and not request.ignore_eos:
                reason = "stop"
                break
            piece = bytes([token]).decode(errors="replace") if token != END else ""
            text += piece
            if any(stop in text for stop in stops):
                text = text[: min(text.find(stop) for stop in stops if stop in text)]
                reason = "stop"
                break
            if not stops:
                handle.push(Chunk(index, piece, [token], None if entry is None else [entry]))
        if stops:
            handle.push(Chunk(index, text))
        seconds = time.perf_counter() - started
        echoed = None
        if request.prompt_logprobs is not None:
            rest = range(1, len(prompt))
            scored = [
                self._entry(self._logprobs(prompt[:i], request.skin), prompt[i], request.prompt_logprobs) for i in rest
            ]
            echoed = [None, *scored]
        completion = Completion(
            text=text,
            tokens=tokens[len(prompt) :],
            finish_reason=reason,  # type: ignore[arg-type]
            usage=Usage(len(prompt), min(4, len(prompt) - 1), len(tokens) - len(prompt)),
            latency=Latency(queue=0.001, first_token=0.002, total=0.002 + seconds, compute=0.01),
            logprobs=None if request.logprobs is None else logprobs,
            prompt_logprobs=echoed,
            prompt_tokens=prompt,
            index=index,
        )
        handle.push(Chunk(index, "", completion=completion))
        return completion

    def _score(self, request: ScoreRequest, handle: FakeHandle) -> Callable[[], Any]:
        context = self._ids(request.context, field="context")

        def work() -> Scores:
            if handle.aborted.wait(self.seconds_per_token):
                raise RequestError("the request was aborted")
            sums, counts = [], []
            for continuation in request.continuations:
                tokens, total = list(context), 0.0
                ids = self._ids(continuation)
                for token in ids:
                    total += float(self._logprobs(tokens, request.skin)[token])
                    tokens.append(token)
                sums.append(total)
                counts.append(len(ids))
            usage = Usage(len(context), 0, sum(counts))
            return Scores(sums, [False] * len(sums), counts, usage, Latency(0.001, 0.002, 0.003, 0.01))

        return work

    def _features(self, request: FeatureRequest, handle: FakeHandle) -> Callable[[], Any]:
        ids = self._ids(request.text, field="text")

        def work() -> Features:
            if handle.aborted.wait(self.seconds_per_token):
                raise RequestError("the request was aborted")
            seed = zlib.crc32(bytes(ids), zlib.crc32((request.skin or "").encode()))
            vectors = np.random.default_rng(seed).normal(size=(len(request.layers), WIDTH)).astype(np.float32)
            return Features(vectors, Usage(len(ids)), Latency(0.001, 0.002, 0.003, 0.01))

        return work


def _instance(request: GenerateRequest) -> str:
    """Some answer that follows the request's grammar; empty where it is free."""
    if request.choices:
        return request.choices[0]
    if request.schema is None:
        return ""
    values = {"string": "x", "integer": 1, "number": 1.5, "boolean": True}
    properties = request.schema.get("properties", {})
    return json.dumps({name: values.get(of.get("type"), "x") for name, of in properties.items()})
