"""What the checks of the server share: `pando serve` in a process of its own, the official client, two small skins."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

BASE = "smollm2-135m"
KEY = "only-for-this-check"
ASK = [{"role": "user", "content": "Name three fruits, nothing else."}]


@dataclass
class Bench:
    """What every check works with."""

    url: str
    skins: list[Any]
    model: Any = None  # our own engine, only for what transformers cannot tell
    calls: int = 0
    counted: list[Any] = field(default_factory=list)

    @cached_property
    def client(self) -> Any:
        import openai

        return openai.OpenAI(base_url=self.url, api_key=KEY, max_retries=0, timeout=300)

    @cached_property
    def folder(self) -> Path:
        from pando.model.base import open_base

        return Path(open_base(BASE).folder)

    @cached_property
    def reference(self) -> tuple[Any, Any]:
        """transformers' model in float32 and its tokenizer."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()
        return model, AutoTokenizer.from_pretrained(self.folder)

    def count(self, answer: Any) -> Any:
        """Remembers an answer, to be found again in the ledger."""
        self.counted.append(answer)
        return answer

    def chat(self, **more: Any) -> Any:
        sent = {"model": BASE, "messages": ASK, "max_tokens": 16, "temperature": 0} | more
        answer = self.client.chat.completions.create(**sent)
        return answer if more.get("stream") else self.count(answer)

    def complete(self, prompt: Any, **more: Any) -> Any:
        sent = {"model": BASE, "prompt": prompt, "max_tokens": 8, "temperature": 0} | more
        answer = self.client.completions.create(**sent)
        return answer if more.get("stream") else self.count(answer)

    def refused(self, kind: str, call: Callable[[], Any]) -> Any:
        import openai

        try:
            call()
        except getattr(openai, kind) as error:
            return error
        raise AssertionError(f"no {kind}")


def make_skins(folder: Path, base: Any) -> list[Any]:
    """Two small skins of two methods: one asks the base, one does not."""
    import numpy as np

    from pando.skin import Skin
    from pando.skin.linear import Linear
    from pando.skin.parts import Prompt
    from pando.skin.tfidf import TfIdf

    prompt = Prompt("Is the mood of this text positive or negative?", ("text",))
    labels = ("negative", "positive")
    words = TfIdf.fit(["I love this wonderful day", "This is awful and sad"])
    weight = np.zeros((2, len(words.idf)), dtype=np.float32)
    weight[1, : len(words.words)] = [1.0 if word in ("love", "wonderful") else 0.0 for word in words.words]
    linear = Linear(weight, np.array([0.1, 0.0], dtype=np.float32))
    zero = Skin(name="mood", kind="classify", rung="zero", method="score", prompt=prompt, labels=labels, base=base)
    floor = Skin(
        name="mood-floor", kind="classify", rung="floor", method="floor", prompt=prompt, labels=labels,
        baseline="tfidf", words=words, linear=linear,
    )  # fmt: skip
    return [skin.save(folder / skin.name) for skin in (zero, floor)]


@contextmanager
def serving(skins: Path, queue: int, *, clean: bool = True) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`pando serve` in a process of its own on a free port; yields it and its URL. If `clean`, it must end so."""
    command = [
        sys.executable,
        "-m",
        "pando",
        "serve",
        BASE,
        "--skins",
        str(skins),
        "--port",
        "0",
        "--max-queue",
        f"{queue}",
    ]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PANDO_API_KEY": KEY})
    try:
        assert server.stdout
        line = server.stdout.readline()
        if not line:
            sys.exit(f"pando serve ended with {server.wait()}")
        yield server, line.split()[-1]
        server.terminate()
        assert server.wait(90) == 0 or not clean, "it did not end cleanly"
    finally:
        server.kill()
        server.wait()
