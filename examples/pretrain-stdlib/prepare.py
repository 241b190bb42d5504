"""Makes the example's text out of the Python standard library on this machine, read as data: nothing of it is run.

    python examples/pretrain-stdlib/prepare.py FOLDER

FOLDER/source/      the modules that the corpus is made of
FOLDER/docs.jsonl   their documentation strings: {"text", "name"}
FOLDER/held/        modules that are held back: 120 drawn by a seed, and those of the task
FOLDER/task/        "which module does this docstring belong to?": train.jsonl, test.jsonl and task.yaml, made from
                    held-back modules that have many docstrings
"""

from __future__ import annotations

import ast
import json
import random
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

HELD, MODULES, EACH = 120, 8, 45  # files held back; modules of the task, and docstrings of each
SEED = 0
LEAST, MOST = 1_000, 200_000  # bytes of a module
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3", "ensurepip"}
TASK = """\
name: modules
kind: classify
instruction: Which module of the Python standard library does this documentation string belong to?
data: {train: train.jsonl, test: test.jsonl}
fields: {input: text, output: module}
seed: 0
"""


def modules(root: Path) -> Iterator[Path]:
    """The readable modules below the library's folder, tests left out, in a fixed order."""
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if LEFT_OUT.isdisjoint(inside.parts) and LEAST <= path.stat().st_size <= MOST:
            try:
                path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
            yield inside


def docstrings(text: str) -> list[str]:
    """The documentation strings of a module, its classes and functions, in order, each once."""
    found = []
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            said = ast.get_docstring(node)
            if said and len(said) >= 20:
                found.append(said)
    return list(dict.fromkeys(found))


def prepare(folder: Path) -> None:
    """Writes everything below `folder`; what an earlier run left is replaced."""
    root = Path(sysconfig.get_paths()["stdlib"])
    names = list(modules(root))
    texts = {name: (root / name).read_text(encoding="utf-8") for name in names}
    said = {name: docstrings(text) for name, text in texts.items()}
    draw = random.Random(SEED)
    rich = [name for name in names if len(said[name]) >= EACH]
    asked = sorted(draw.sample(rich, min(MODULES, len(rich))))
    held = set(draw.sample([name for name in names if name not in asked], min(HELD, len(names) // 3))) | set(asked)
    for part in ("source", "held", "task"):
        shutil.rmtree(folder / part, ignore_errors=True)
    for name in names:
        target = folder / ("held" if name in held else "source") / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(texts[name], encoding="utf-8")
    rows = [{"text": text, "name": str(name)} for name in names if name not in held for text in said[name]]
    (folder / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    write_task(folder / "task", {str(name.with_suffix("")).replace("/", "."): said[name] for name in asked}, draw)
    print(
        f"{len(names) - len(held):,} modules and {len(rows):,} docstrings to learn from, {len(held)} modules held back"
    )


def write_task(folder: Path, said: dict[str, list[str]], draw: random.Random) -> None:
    """As many docstrings of each module, three in five to learn from."""
    folder.mkdir(parents=True)
    rows = [(text, module) for module, found in said.items() for text in draw.sample(found, EACH)]
    draw.shuffle(rows)
    cut = 3 * len(rows) // 5
    for name, part in (("train", rows[:cut]), ("test", rows[cut:])):
        lines = (json.dumps({"text": text, "module": module}) + "\n" for text, module in part)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "task.yaml").write_text(TASK, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    prepare(Path(sys.argv[1]))
