"""`pando chat`: talk to a base model, or give inputs to a skin, in the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pando.errors import ContextLengthError, PandoError

if TYPE_CHECKING:
    from pando.interface import Completion, Handle, LanguageModel, Message
    from pando.ledger import Ledger
    from pando.skin import Prediction, Skin

_HELP = "/exit or Ctrl-D ends, Ctrl-C stops an answer"


def command(
    target: Annotated[
        str, typer.Argument(metavar="BASE|SKIN", help="A base model, or the folder of a skin.")
    ] = "smollm2-135m",
    system: Annotated[str | None, typer.Option(help="A system message (base models).")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer (base models).")] = 512,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest tokens (base models).")] = 0.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or int8.")] = "auto",
) -> None:
    """Talk to a base model, or give inputs to a skin, in the terminal."""
    from pando.engine import load
    from pando.ledger import open_ledger
    from pando.skin import load_skin
    from pando.skin.bases import checked, reference
    from pando.skin.store import is_skin

    with open_ledger() as ledger:
        if not is_skin(Path(target)):
            with load(target, device=device, dtype=dtype) as model:
                _talk(model, ledger, system, max_tokens, temperature)
            return
        skin = load_skin(target)
        if skin.base is None:
            _serve(skin, None, ledger)
            return
        with load(reference(skin.base), device=device, dtype=dtype) as model:
            _serve(skin, checked(skin, model), ledger)


def _talk(model: LanguageModel, ledger: Ledger, system: str | None, max_tokens: int, temperature: float) -> None:
    """A chat with a base; its oldest turns are forgotten when the context is full."""
    from pando.interface import GenerateRequest

    opening: list[Message] = [{"role": "system", "content": system}] if system else []
    turns: list[Message] = []
    _note(f"{model.identity.name}: {_HELP}, /reset forgets what was said")
    for said in _lines("> "):
        if said == "/reset":
            turns = []
            continue
        turns.append({"role": "user", "content": said})
        request = GenerateRequest(messages=[*opening, *turns], max_tokens=max_tokens, temperature=temperature)
        try:
            handle = model.submit(request)
            answer = _stream(handle)
            (found,) = handle.result()
            _record(ledger, model, None, found)
        except ContextLengthError as error:
            _note(f"{error}; the older half of this chat is forgotten, say it again")
            turns = turns[len(turns) // 4 * 2 : -1]
            continue
        turns.append({"role": "assistant", "content": answer})


def _serve(skin: Skin, model: LanguageModel | None, ledger: Ledger) -> None:
    """Answers inputs one by one, each by itself."""
    _note(f"{skin.name} ({skin.kind}, {skin.rung}): {_HELP}")
    first, *others = skin.prompt.inputs
    for said in _lines(f"{first}> "):
        inputs = {first: said} | {name: _line(f"{name}> ") or "" for name in others}
        try:
            requests = skin.ask(model, inputs) if model else []
            handles = [model.submit(request) for request in requests] if model else []
            if skin.method == "generate":
                _stream(handles[0])
            found = skin.answer(inputs, [handle.result() for handle in handles])
            _print(skin, found)
            _record(ledger, model, skin, found)
        except PandoError as error:
            _note(str(error))


def _record(ledger: Ledger, model: LanguageModel | None, skin: Skin | None, found: Completion | Prediction) -> None:
    """An answer's line in the ledger."""
    from pando.ledger import Seconds
    from pando.settings import load_settings

    ledger.record(
        "call",
        skin=skin.name if skin else None,
        skin_version=skin.version if skin else None,
        base=model.identity if model else None,
        usage=found.usage,
        seconds=Seconds(compute=found.latency.compute),
        usd=load_settings().usd(found.latency.compute),
        detail={"route": "chat"},
    )


def _print(skin: Skin, found: Prediction) -> None:
    """What has not been printed while it was written: the answer, or that there is none."""
    if found.value is None:
        print("(withheld: not sure enough)" if found.abstained else "(the answer is no JSON object)", flush=True)
    elif skin.method != "generate":
        text = found.value if isinstance(found.value, str) else json.dumps(found.value, ensure_ascii=False)
        print(text if found.confidence is None else f"{text}  ({found.confidence:.0%})", flush=True)


def _stream(handle: Handle) -> str:
    """Prints an answer as it comes; Ctrl-C ends it where it is."""
    text = ""
    try:
        for chunk in handle.stream():
            text += chunk.text
            print(chunk.text, end="", flush=True)
    except KeyboardInterrupt:
        handle.abort()
    print(flush=True)
    return text


def _lines(prompt: str) -> Iterator[str]:
    """What is typed, line by line without empty ones, until /exit or the end."""
    while (line := _line(prompt)) is not None and line != "/exit":
        if line:
            yield line


def _line(prompt: str) -> str | None:
    """One line; None at the end. The prompt is only shown to people."""
    try:
        return input(prompt if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
