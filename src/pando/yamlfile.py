"""YAML that knows its lines, so that an error can name the line of the field at fault."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from pando.errors import PandoError

Locate = Callable[[Sequence[str | int]], int]
MAX_BYTES = 1_000_000
MAX_VALUES = 100_000


def read_yaml(path: Path, what: str, begin: str, wrong: type[PandoError]) -> tuple[dict[str, Any], Locate]:
    """Reads a YAML mapping and tells where its fields are.

    Args:
        what: what kind of file it is, for messages.
        begin: how such a file begins, likewise.
        wrong: the error to raise.

    Returns:
        The mapping, and a function from a path of keys and list positions to the line (from 1) of the deepest part
        of it that the file has.

    Raises:
        PandoError: no such file, not UTF-8, not YAML, not a mapping, a key twice, or out of all proportion.
    """
    text = _text(path, what, wrong)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise wrong(f"{path}: {what} is a mapping, {begin}")
        _refuse_duplicates_and_bombs(node, path, wrong)
        values = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise wrong(f"{where}: not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise wrong(f"{path}: not valid YAML: {error}") from None
    except RecursionError:
        raise wrong(f"{path}: nested too deeply") from None
    return values, lambda loc: _line(node, loc)


def _text(path: Path, what: str, wrong: type[PandoError]) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise wrong(f"{path}: no such file") from None
    except IsADirectoryError:
        raise wrong(f"{path} is a folder; name the {what.removeprefix('a ')} in it") from None
    except OSError as error:
        raise wrong(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise wrong(f"{path} is over {MAX_BYTES:,} bytes, which {what} never is (rows stand in files of their own)")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise wrong(f"{path}:{line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8") from None


def _refuse_duplicates_and_bombs(root: yaml.Node, path: Path, wrong: type[PandoError]) -> None:
    """YAML lets a later key silently win, and a few aliases of aliases stand for billions of values."""
    sizes: dict[int, int] = {}
    inside: set[int] = set()

    def size(node: yaml.Node) -> int:
        if id(node) in inside:
            raise wrong(f"{path}:{node.start_mark.line + 1}: an alias inside its own anchor")
        if id(node) not in sizes:
            inside.add(id(node))
            sizes[id(node)] = 1 + sum(map(size, _children(node, path, wrong)))
            inside.remove(id(node))
        return sizes[id(node)]

    if size(root) > MAX_VALUES:
        raise wrong(f"{path}: over {MAX_VALUES:,} values once its aliases are expanded")


def _children(node: yaml.Node, path: Path, wrong: type[PandoError]) -> list[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if not isinstance(node, yaml.MappingNode):
        return []
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                raise wrong(f"{path}:{key.start_mark.line + 1}: {key.value} stands twice; keep one")
            seen.add(key.value)
    return [child for pair in node.value for child in pair]


def _line(node: yaml.Node, loc: Sequence[str | int]) -> int:
    line: int = node.start_mark.line + 1
    for part in loc:
        found = None
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == part), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            found = (node.value[part], node.value[part])
        if found is None:
            return line
        line, node = found[0].start_mark.line + 1, found[1]
    return line
