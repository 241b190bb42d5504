"""The shape of the code: short files, and nobody asks a model for its family but to look up the family's own file."""

from __future__ import annotations

import ast
from pathlib import Path

import pando

SOURCE = Path(pando.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))


def test_no_file_is_long() -> None:
    lengths = {str(path.relative_to(SOURCE)): len(path.read_text().splitlines()) for path in FILES}
    assert len(lengths) > 100 and {name: length for name, length in lengths.items() if length > 400} == {}


def test_no_decision_depends_on_a_familys_name() -> None:
    found = []
    for path in (path for path in FILES if path.parent.name != "families"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
                if any(
                    side == "family" or side.endswith(("config.family", "model_type", "['family']")) for side in sides
                ):
                    found.append(f"{path.relative_to(SOURCE)}:{node.lineno} {ast.unparse(node)}")
    assert found == []
