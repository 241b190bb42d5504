"""Labs with a model that knows some of the words that tell labels apart."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pando.adapt.folder import Folder
from pando.adapt.lab import Lab
from pando.adapt.scorer import Scorer
from pando.ledger import Ledger
from pando.task import Task
from pando.task.metrics import load_metric
from pando.task.splits import make_splits
from tests.adapt.tasks import make_task
from tests.fakes import FakeModel

DEAF = {"good": ["great", "lovely"], "bad": ["awful"]}  # half of the words
MakeLab = Callable[..., tuple[Task, Lab, FakeModel]]


@pytest.fixture
def make_lab(tmp_path: Path) -> MakeLab:
    """(task, lab, model) of a task in the test's folder; the same folder again goes on with what it holds."""

    def make(task: Task | None = None, model: FakeModel | None = None, **keys: Any) -> tuple[Task, Lab, FakeModel]:
        task = task or make_task(tmp_path, **keys)
        model = model or FakeModel(DEAF)
        folder, ledger = Folder(tmp_path / "out"), Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
        scorer = Scorer(model, load_metric(task), folder.items, ledger, task.seed)
        folder.beat()
        lab = Lab(task, make_splits(task), model, scorer, folder, ledger)
        folder.close()
        return task, lab, model

    return make


@pytest.fixture
def intents(tmp_path: Path) -> Task:
    """30 labels, each with a word of its own."""
    draw = random.Random(0)
    rows = []
    for i in range(600):
        n = draw.randrange(30)
        rows.append({"text": f"please {draw.choice('abcdefgh')} topic{n:02d}x {i}", "label": f"label {n:02d}"})
    (tmp_path / "intents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Task(
        name="intents",
        kind="classify",
        instruction="What is it about?",
        data="intents.jsonl",
        fields={"input": "text", "output": "label"},
    )
    task._folder = tmp_path
    return task


@pytest.fixture
def cities(tmp_path: Path) -> Task:
    """Extraction without a schema: a city in every row, a day in half of them."""
    draw = random.Random(0)
    rows = []
    for i in range(200):
        city, day = draw.choice(["Paris", "Rome", "Oslo"]), draw.choice(["monday", None])
        wanted = {"city": city, "seats": i % 50} | ({"day": day} if day else {})
        rows.append({"text": f"{i % 50} seats to {city} {day or ''} {i}", "json": wanted})
    (tmp_path / "cities.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Task(
        name="cities",
        kind="extract",
        instruction="Find the city and the day.",
        data="cities.jsonl",
        fields={"input": "text", "output": "json"},
    )
    task._folder = tmp_path
    return task
