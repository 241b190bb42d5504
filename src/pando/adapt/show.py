"""What a model sees of a task's rows, what is masked in training, and what is expected back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from pando.adapt.rungs.common import demonstration, index
from pando.adapt.rungs.few import draw
from pando.errors import TaskError
from pando.model.base import DEFAULT, open_base
from pando.model.tokenizer import Tokenizer
from pando.skin import Skin
from pando.skin.parts import Prompt
from pando.skin.render import answer_text, context, training_example
from pando.task.documents import read_documents
from pando.task.file import KIND_RUNGS, RUNGS, Task
from pando.task.rows import Example
from pando.task.splits import Splits, make_splits

HEAD = 200  # characters of a wanted document that are shown
SHOTS = 4  # demonstrations of few and knn as they are shown here; a ladder finds out how many are best


def show(task: Task, rung: str, n: int, base: str = DEFAULT) -> str:
    """The first `n` training rows as `rung` shows them to a base; its weights are not loaded.

    Raises:
        TaskError: there is no such rung, or it does not fit the task.
        PandoError: the rows cannot be read, or the base is not there.
    """
    if rung not in RUNGS:
        raise TaskError(f"there is no rung {rung!r}; there are {', '.join(RUNGS)}")
    if rung not in (fitting := KIND_RUNGS[task.kind]):
        raise TaskError(f"the rung {rung} is not for kind {task.kind}; it takes {', '.join(fitting)}")
    splits = make_splits(task)
    if task.kind == "retrieve":
        return "\n".join(_queries(task, rung, splits.train[:n]))
    tokenizer = open_base(base).tokenizer
    shown, others = splits.train[:n], splits.train[n:]
    skin = _sketch(task, rung, splits, others)
    parts = []
    for number, row in enumerate(shown, 1):
        parts.append(f"=== row {number}, line {row.line} of the training file, as {rung} has it")
        parts += [f"{head}\n{text}" if text else head for head, text in _view(skin, row, tokenizer)]
    return "\n".join(parts)


def _queries(task: Task, rung: str, rows: Sequence[Example]) -> Iterator[str]:
    """Queries and the heads of the documents that they want; each side is read by itself."""
    documents = read_documents(task)
    texts = dict(zip(documents.ids, documents.texts, strict=True))
    how = {"floor": "words", "hybrid": "words and vectors"}.get(rung, "vectors")
    for number, row in enumerate(rows, 1):
        yield f"=== query {number}, line {row.line} of the training file, searched by {how}\n{row.text}"
        for name, grade in row.output.items() if isinstance(row.output, dict) else ():
            if not grade:
                continue
            text = texts[name]
            yield f"--- wanted ({grade:g}): {name}\n{text[:HEAD]}{'...' if len(text) > HEAD else ''}"


def _sketch(task: Task, rung: str, splits: Splits, rows: Sequence[Example]) -> Skin:
    """A skin as the rung's first candidate, without anything learnt; `rows` are those it may demonstrate with."""
    skin = Skin(
        name=task.name,
        kind=task.kind,
        rung=rung,
        method="score" if task.kind == "classify" else "generate",
        prompt=Prompt(task.instruction, task.fields.input),
        labels=splits.labels,
        grammar=task.fields.json_schema,
    )
    if rung == "few":
        drawn = draw(rows, SHOTS, np.random.default_rng(task.seed), task)
        return replace(skin, demonstrations=tuple(map(demonstration, drawn)))
    if rung == "knn" and rows:
        return replace(skin, retrieval=index(rows, splits.labels, shots=min(SHOTS, len(rows))))
    return skin


def _view(skin: Skin, row: Example, tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """Headings and texts."""
    wanted = answer_text(row.output or "")
    if skin.rung == "floor":
        yield "--- no model is asked; the floor sees", row.text
        yield "--- expected back", wanted
        return
    prompt = context(skin, tokenizer, row.inputs)
    tokens = tokenizer.encode(prompt)
    if skin.rung == "lora":
        prompt, answer = training_example(skin, row, tokenizer)
        (learnt,) = tokenizer.encode_continuations(prompt, tokens, [answer])
        yield f"--- the model sees (masked: {len(tokens)} tokens without loss)", prompt
        yield f"--- and learns to answer ({len(learnt)} tokens with loss, the end of the turn is one)", answer
        return
    yield f"--- the model sees ({len(tokens)} tokens; nothing is trained, so nothing is masked)", prompt
    if skin.rung == "probe":
        yield (
            "--- or the input alone; its hidden states are read, nothing is written. Expected of the classifier",
            wanted,
        )
    elif skin.method == "score":
        yield f"--- the likeliest of {len(skin.labels)} labels is the answer. Expected", wanted
    else:
        yield "--- it writes the answer" + (" as JSON" if skin.kind == "extract" else "") + ". Expected", wanted
