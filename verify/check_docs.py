"""A stranger finds the way: the README, one page each for ladder, statistics and formats, and nothing in them untrue.

Untrue would be: a link to nowhere, a make target, verb or option that does not exist, a name that `pando` does not
export or a parameter that it does not have, a task file that does not load.
"""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pando
from pando.task import Task

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("docs/ladder.md", "docs/statistics.md", "docs/formats.md")
FIRST_SCREEN = 45  # lines
LONGEST_PAGE = 160  # lines


def documents() -> dict[str, str]:
    """Every Markdown file that git knows, by path."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {name: (ROOT / name).read_text(encoding="utf-8") for name in listed.stdout.splitlines()}


def blocks(text: str, *languages: str) -> list[str]:
    """The fenced blocks in one of the languages."""
    return [body for language, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S) if language in languages]


def first_screen(text: str) -> Iterator[str]:
    screen = "\n".join(text.splitlines()[:FIRST_SCREEN])
    for said in ("Pando", "base model", "make demo", "make test", "Decision"):
        if said not in screen:
            yield f"README.md: its first {FIRST_SCREEN} lines do not say {said!r}"


def pages(texts: dict[str, str]) -> Iterator[str]:
    for name in PAGES:
        if name not in texts:
            yield f"{name} is missing"
        elif texts[name].count("\n") > LONGEST_PAGE:
            yield f"{name} is longer than {LONGEST_PAGE} lines"


def links(name: str, text: str) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        if not file.exists():
            yield f"{name}: links to {target}, which does not exist"
        elif anchor and anchor not in anchors(file.read_text(encoding="utf-8")):
            yield f"{name}: links to {target}, where no heading is called so"


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def commands(name: str, text: str) -> Iterator[str]:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for block in blocks(text, "sh", "bash", "console", ""):
        for line in block.replace("\\\n", " ").splitlines():
            words = (
                shlex.split(line.removeprefix("$ "), comments=True) if re.match(r"(\$ )?(make|pando) ", line) else []
            )
            if words[:1] == ["make"] and words[1] not in targets:
                yield f"{name}: there is no `make {words[1]}`"
            if words[:1] == ["pando"]:
                yield from verb(name, words[1:])


def verb(name: str, words: list[str]) -> Iterator[str]:
    text = usage(words[0])
    path = words[0]
    if len(words) > 1 and re.search(rf"^  {re.escape(words[1])} ", text.partition("Commands:")[2], re.M):
        path = f"{words[0]} {words[1]}"
        text = usage(words[0], words[1])
    if not text:
        yield f"{name}: there is no `pando {path}`"
    for option in words[1:]:
        if text and option.startswith("-") and not re.search(rf"{re.escape(option.split('=')[0])}\b", text):
            yield f"{name}: `pando {path}` has no {option}"


@cache
def usage(*words: str) -> str:
    return subprocess.run([sys.executable, "-m", "pando", *words, "--help"], capture_output=True, text=True).stdout


def python(name: str, text: str) -> Iterator[str]:
    for block in blocks(text, "python"):
        for node in ast.walk(ast.parse(block)):
            match node:
                case ast.Attribute(value=ast.Name(id="pando"), attr=attribute) if attribute not in pando.__all__:
                    yield f"{name}: pando does not export {attribute}"
                case ast.Call(func=ast.Attribute(value=ast.Name(id="pando"), attr=attribute), keywords=keywords):
                    known = parameters(attribute)
                    for keyword in keywords:
                        if keyword.arg not in known:
                            yield f"{name}: pando.{attribute} has no parameter {keyword.arg}"


def parameters(attribute: str) -> set[str]:
    function = getattr(pando, attribute)
    if attribute == "adapt":  # a package that can be called
        from pando.adapt.ladder import adapt as function
    return set(getattr(function, "model_fields", None) or inspect.signature(function).parameters)


def tasks(name: str, text: str) -> Iterator[str]:
    for block in blocks(text, "yaml"):
        if re.search(r"^kind: (classify|extract|generate)", block, re.M):
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder, "task.yaml")
                file.write_text(block, encoding="utf-8")
                try:
                    Task.load(file)
                except pando.PandoError as error:
                    yield f"{name}: a task file does not load: {error}"


def main() -> int:
    texts = documents()
    faults = [*first_screen(texts.get("README.md", "")), *pages(texts)]
    for name, text in texts.items():
        for look in (links, commands, python, tasks):
            faults += look(name, text)
    print("\n".join(faults))
    print(f"{len(texts)} documents, {len(faults)} faults")
    return int(bool(faults))


sys.exit(main())
