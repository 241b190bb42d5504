"""What the benchmarks share."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(scope="module")
def common() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_common", BENCH / "_common.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_sides_take_turns_at_going_first(common: ModuleType) -> None:
    order: list[str] = []
    found = common.alternate({name: lambda name=name: order.append(name) or len(order) for name in "ab"}, 3)
    assert "".join(order) == "abbaab"
    assert found == {"a": [1, 4, 5], "b": [2, 3, 6]}


def test_a_ratio_is_the_median_of_neighbouring_runs(common: ModuleType) -> None:
    ratio = common.Ratio.of([10, 40, 30], [10, 10, 10])
    assert (ratio.median, ratio.low, ratio.high) == (3, 1, 4)
    assert str(ratio) == "3.00x (1.00 to 4.00)"


def test_a_section_is_replaced_in_its_place_and_others_are_kept(common: ModuleType) -> None:
    document = common.replaced(common.HEAD, "A", "## A\n\none\n")
    document = common.replaced(document, "B", "## B\n\n| x |\n")
    changed = common.replaced(document, "A", "## A\n\ntwo\n")
    assert changed == document.replace("one", "two")
    assert changed.startswith(common.HEAD.rstrip()) and changed.endswith("| x |\n")
    assert changed.index("## A") < changed.index("## B")
