"""jinja2's sandbox, kept from eating time and memory.

A chat template is foreign code. jinja2 keeps it from objects that it should not reach. Here a render also has a
deadline, looked at on every turn of a loop, call, filter, operator and output; nothing it makes may grow beyond
`MOST`; and only methods and filters are there whose results can be measured beforehand.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MOST = 4 << 20  # characters, or elements
SECONDS = 5.0

_METHODS: dict[type, set[str]] = {
    str: {
        "capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdigit", "islower", "isspace",
        "isupper", "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex",
        "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "title", "upper",
    },
    list: {"count", "index"},
    tuple: {"count", "index"},
    dict: {"get", "items", "keys", "values"},
}  # fmt: skip
_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "int", "items", "last",
    "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "safe", "select", "selectattr",
    "sort", "string", "title", "trim", "unique", "upper",
)  # fmt: skip


class Refusal(TemplateError):
    """The template called `raise_exception`: these messages do not fit it."""


class _Budget:
    """What a render may still use."""

    def __init__(self) -> None:
        self.deadline = time.monotonic() + SECONDS
        self.written = 0

    def tick(self) -> None:
        if time.monotonic() > self.deadline:
            raise SecurityError(f"it runs for more than {SECONDS:g} seconds")

    def write(self, characters: int) -> None:
        self.tick()
        self.written += characters
        _within(self.written)


_budget: ContextVar[_Budget] = ContextVar("budget")


def compile_template(source: str) -> Template:
    """A template that can be rendered with `render`. Raises whatever jinja2 and Python raise on a bad one."""
    _within(len(source) * 16)
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, "jinja2.ext.loopcontrols"],
        finalize=_written,
    )
    tree = _Bounds().visit(environment.parse(source))
    tree.set_environment(environment)
    return environment.from_string(tree)


def render(template: Template, **variables: Any) -> str:
    """The text. Raises `Refusal`, or whatever foreign code raises."""
    token = _budget.set(_Budget())
    try:
        return "".join(template.generate(**variables))
    finally:
        _budget.reset(token)


def _within(size: int) -> None:
    if size > MOST:
        raise SecurityError(f"it makes more than {MOST} characters or elements")


def _size(value: Any) -> int:
    """Elements and characters of a value written out in full; parts that occur twice count twice, yet are seen once."""
    sizes: dict[int, int] = {}
    stack = [value]
    while stack:
        top = stack[-1]
        parts: Iterable[Any] = ()
        if isinstance(top, dict):
            parts = (*top.keys(), *top.values())
        elif isinstance(top, (list, tuple)):
            parts = top
        pending = [part for part in parts if id(part) not in sizes and isinstance(part, (list, tuple, dict))]
        if pending:
            stack += pending
            continue
        sizes[id(top)] = len(top) if isinstance(top, str) else sum(_leaf(part, sizes) for part in parts)
        stack.pop()
    return sizes[id(value)]


def _leaf(part: Any, sizes: dict[int, int]) -> int:
    return 1 + (len(part) if isinstance(part, str) else sizes.get(id(part), 0))


def _measured(value: Any) -> Any:
    if isinstance(value, (str, list, tuple, dict)):
        _within(_size(value))
    return value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(_measured(value))


@pass_context
def _written(context: Context, value: Any) -> Any:
    text = _text(value)
    _budget.get().write(len(text))
    return text


@pass_context
def _turns(context: Context, value: Iterable[Any]) -> Iterator[Any]:
    for item in value:
        _budget.get().tick()
        yield item


@pass_context
def _concat(context: Context, parts: list[Any]) -> str:
    return _joined("", parts)


@pass_context
def _built(context: Context, value: Any) -> Any:
    _budget.get().tick()
    return _measured(value)


def _joined(separator: str, parts: Iterable[Any]) -> str:
    texts = []
    size = 0
    for part in parts:
        texts.append(_text(part))
        size += len(texts[-1]) + len(separator)
        _within(size)
    _budget.get().tick()
    return separator.join(texts)


@pass_context
def _join(context: Context, value: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    if attribute is not None:
        value = (context.environment.getattr(part, attribute) for part in value)
    return _joined(_text(d), value)


def _replace(value: Any, old: str, new: str, count: int = -1) -> str:
    text = _text(value)
    _within(len(text) + (text.count(old) if old else len(text) + 1) * len(new))
    return text.replace(old, new, count)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    step = (indent or 0) + sum(map(len, separators or ())) + 8
    _within(_size(value) * step)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: Any) -> None:
    raise Refusal(_text(message))


def _strftime_now(form: str) -> str:
    if len(form) > 100 or any(c.isdigit() for c in form):
        raise SecurityError(f"strftime_now({form[:100]!r})")
    return datetime.now().strftime(form)


def _ticking(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)  # keeps the marks that tell jinja2 which arguments the filter takes
    def call(*args: Any, **kwargs: Any) -> Any:
        _budget.get().tick()
        return _measured(function(*args, **kwargs))

    return call


class _Namespace(Namespace):
    """Holds what a loop changes. Names of Python's own protocols cannot be put on it."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        for name in (*kwargs, *(key for arg in args[1:] for key in dict(arg))):
            _check_name(name)
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "namespace"


def _check_name(name: str) -> None:
    if name.startswith("_"):
        raise SecurityError(f"the name {name!r} on a namespace")


class _Generation(Extension):
    """`{% generation %}` marks what the assistant said, for training; it renders as its body."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Bounds(NodeTransformer):
    """Sends what can grow or last through filters that measure it."""

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        return nodes.Const(node.data, lineno=node.lineno)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered("_turns", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered("_concat", nodes.List(node.nodes, lineno=node.lineno))

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _filtered("_built", node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _filtered("_built", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return node if node.ctx != "load" else _filtered("_built", node)


def _filtered(name: str, node: Any) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        own = {"join": _join, "replace": _replace, "tojson": _tojson}
        known = {name: FILTERS[name] for name in _FILTERS} | own
        self.filters = {name: _ticking(function) for name, function in known.items()}
        self.filters |= {"_turns": _turns, "_concat": _concat, "_built": _built}
        self.globals = {
            "dict": lambda **values: _measured(values),
            "namespace": _Namespace,
            "raise_exception": _raise_exception,
            "range": safe_range,
            "strftime_now": _strftime_now,
        }

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, (Undefined, Namespace, Macro)) or type(obj).__module__.startswith("jinja2"):
            return super().is_safe_attribute(obj, attr, value)
        return attr in next((names for kind, names in _METHODS.items() if isinstance(obj, kind)), ())

    def wrap_str_format(self, value: Any) -> None:
        return None  # str.format is no method that templates may call: its width is free

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _budget.get().tick()
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str) and name in ("replace", "join"):
            return _replace(owner, *args) if name == "replace" else _joined(owner, *args)
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _budget.get().tick()
        sized = (str, list, tuple)
        if operator == "%" and isinstance(left, str):
            raise SecurityError("string formatting by %")
        if operator == "+" and isinstance(left, sized) and isinstance(right, sized):
            _within(_size(left) + _size(right))
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, sized) and isinstance(times, int):
                    _within(_size(value) * max(times, 0))
        if isinstance(left, int) and isinstance(right, int) and operator in ("*", "**"):
            bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
            _within(bits * (MOST // 4096))
        return super().call_binop(context, operator, left, right)
