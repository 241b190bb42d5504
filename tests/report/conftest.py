"""A report as a ladder writes it (format 1), for the terminal and the page."""

from __future__ import annotations

from typing import Any

import pytest


def rung(name: str, quality: float, cost: float, seconds: float, status: str = "ok") -> dict[str, Any]:
    dev = {"quality": quality, "low": quality - 0.07, "high": min(1.0, quality + 0.05), "n": 80}
    return {
        "name": name,
        "skin": f"skins/{name}",
        "dev": dev,
        "p50_ms": 900 * cost,
        "p95_ms": 2000 * cost,
        "cost_per_1k": cost,
        "build_seconds": seconds,
        "status": status,
    }


@pytest.fixture
def report() -> dict[str, Any]:
    skipped = dict.fromkeys(("skin", "dev", "p50_ms", "p95_ms", "cost_per_1k", "build_seconds"))
    return {
        "format_version": 1,
        "task": "tweets",
        "base": {"name": "smollm2-135m", "hash": "sha256:0123", "source": "pip", "revision": "0.1.2", "licence": None},
        "mode": "sweep",
        "metric": "accuracy",
        "target": {"quality": 0.85, "p95_ms": 400, "cost_per_1k": 0.02, "margin": 0.02},
        "rungs": [
            rung("floor", 0.755, 0.00002, 1.4),
            rung("zero", 0.71, 0.0011, 3),
            rung("few", 0.77, 0.0013, 61),
            {"name": "knn", **skipped, "status": "failed: out of memory"},
            rung("probe", 0.87, 0.0009, 40),
            rung("lora", 0.9, 0.0010, 252),
        ],
        "chosen": "probe",
        "best": "lora",
        "missing": [],
        "undecided": {},
        "details_of": {"rung": "probe", "split": "test"},
        "why": "probe is the cheapest whose quality meets 0.85",
        "test": {
            "quality": 0.861,
            "low": 0.838,
            "high": 0.881,
            "n": 1000,
            "openings": 1,
            "vs_floor": {"diff": 0.103, "low": 0.075, "high": 0.131},
        },
        "comparisons": [
            {"a": "lora", "b": "probe", "diff": 0.03, "low": -0.02, "high": 0.08, "p": 0.3, "p_holm": 0.3, "mde": 0.07},
            {
                "a": "probe",
                "b": "floor",
                "diff": 0.115,
                "low": 0.04,
                "high": 0.2,
                "p": 1e-5,
                "p_holm": 2e-5,
                "mde": 0.1,
            },
        ],
        "rows": {
            "read": {"train.jsonl": 802, "test.jsonl": 1000},
            "used": {"train": 640, "select": 80, "confirm": 80, "test": 1000},
            "dropped": [{"file": "train.jsonl", "why": "no text", "count": 2, "lines": [3, 9]}],
            "too_long": 0,
            "duplicates": 4,
            "contradictory": {"train.jsonl": {"count": 7, "lines": [11, 12, 13, 14, 15]}},
            "overlap": {"exact": 0, "near": 0},
            "labels": {"negative": 250, "positive": 550},
            "unseen_labels": {"mixed": {"count": 1, "lines": [5]}},
            "notes": ["two of three rows are positive"],
        },
        "seconds": 412.0,
        "coverage": [[1.0, 0.861], [0.8, 0.91], [0.5, 0.96], [0.2, 0.99]],
        "calibration": {
            "bins": [
                {"confidence": 0.55, "accuracy": 0.5, "n": 60},
                {"confidence": 0.75, "accuracy": 0.7, "n": 240},
                {"confidence": 0.97, "accuracy": 0.95, "n": 700},
            ],
            "ece": 0.034,
        },
        "confusion": {"labels": ["negative", "positive"], "matrix": [[255, 60], [79, 606]]},
        "disagreements": [
            {
                "input": "Yay. Another good phone interview.",
                "truth": "positive",
                "answers": {"floor": "negative", "probe": "positive", "lora": "positive"},
            },
        ],
        "power": "80 rows show differences of 0.07; 0.03 would need about 450.",
    }
