"""HellaSwag as an lm-eval task made in code, from the rows on this machine: the same few shots before every row."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def rows(count: int) -> list[dict[str, Any]] | None:
    """The first rows of the validation part (`context`, `choices`, `answer`); None where the data set is not here."""
    folder = Path(os.environ.get("PANDO_DATA") or ROOT.parent / "shared" / "data")
    path = folder / "hellaswag" / "validation.jsonl.gz"
    if not path.is_file():
        return None
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]


def task(shots: list[dict[str, Any]], asked: list[dict[str, Any]]) -> Any:
    """An lm-eval task over the rows `asked`, each after all of `shots`."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    # one more row keeps the part from being empty, which lm-eval cannot read; "first_n" never reaches it
    parts = {"shots": Dataset.from_list(shots or asked[:1]), "asked": Dataset.from_list(asked)}
    return ConfigurableTask(
        config={
            "task": f"hellaswag_{len(shots)}_shots",
            "custom_dataset": lambda **_: parts,
            "test_split": "asked",
            "fewshot_split": "shots",
            "fewshot_config": {"sampler": "first_n"},
            "num_fewshot": len(shots),
            "output_type": "multiple_choice",
            "doc_to_text": "{{context}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}",
            "metric_list": [
                {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
            ],
        }
    )
