"""Pretraining runs for people: a terminal view and a page of their own, both of the runs as dicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pando.report import plots, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = (plots.LEAF, plots.SKY, plots.BARK, "#7a5ea8", "#b0485a", plots.QUIET)
_POINTS = 400  # of a curve


def forecast_lines(said: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A forecast as (what, how much)."""
    yield "tokens", f"{said['tokens']:,} in {said['steps']:,} steps, {said['flops']:.2e} FLOPs"
    yield "speed", f"{said['tokens_per_second']:,.0f} tokens/s, {said['step_seconds']:.3g} s a step (measured)"
    yield "memory", f"{said['memory'] / 2**30:.2f} GiB at most (measured)"
    yield "time", words.seconds(3600 * said["hours"])
    yield "money", f"${words.dollars(said['usd'])}"
    far = "; far outside of the sizes that the rule was fitted to" if said["extrapolated"] else ""
    bits, low, high = (said[f"bits_per_byte{end}"] for end in ("", "_low", "_high"))
    if bits is None:
        yield "loss", "not known: no rule says it of a run that goes on from a base, or learns by no causal objective"
    elif low < high:
        yield "loss", f"about {bits:.2f} bits per byte, probably {low:.2f} to {high:.2f}{far}"
    else:
        yield "loss", "not known: the rule puts so small a run no lower than an untrained model"


def compared_lines(said: Mapping[str, Any], was: Mapping[str, Any]) -> Iterator[str]:
    """Forecast against actual, a line for each figure."""
    rows: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("step", "step_seconds", lambda v: f"{v:.3g} s"),
        ("memory", "memory", lambda v: f"{v / 2**30:.2f} GiB"),
        ("time", "hours", lambda v: words.seconds(3600 * v)),
        ("money", "usd", lambda v: f"${words.dollars(v)}"),
        ("bits per byte", "bits_per_byte", lambda v: f"{v:.3f}"),
    )
    for name, key, text in rows:
        if was.get(key) is not None:
            before = f", forecast {text(said[key])}" if said.get(key) is not None else ""
            yield f"{name:<14}{text(was[key])}{before}"


def differences(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Fields of the configs that are not the same in all runs, with each run's value."""
    names = sorted({name for run in runs for name in run["config"]})
    rows = [(name, [str(run["config"].get(name, words.NONE)) for run in runs]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def figures(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A run in numbers, (what, how much)."""
    loss = run["loss"][-1][1] if run["loss"] else None
    bits = run["bits"][-1][1] if run["bits"] else None
    wanted = run["forecast"].get("bits_per_byte")
    return [
        ("steps", f"{run['made']:,}" + ("" if run["finished"] else " (not finished)")),
        ("loss", words.quality(loss)),
        ("bits per byte", words.quality(bits) + (f" (forecast {wanted:.2f})" if wanted is not None else "")),
        ("tokens/s", f"{run['speed']:,.0f}" if run["speed"] else words.NONE),
        ("time", words.seconds(run["seconds"])),
        ("skipped steps", str(run["skipped"])),
    ]


def show_runs(runs: Sequence[Mapping[str, Any]]) -> None:
    """Prints runs on standard output: figures, curves, what differs, samples of the last one."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    table = Table(box=None, header_style="bold")
    table.add_column("run", overflow="fold")
    for name, _ in figures(runs[0]):
        table.add_column(name, justify="right")
    for run in runs:
        table.add_row(run["folder"], *(value for _, value in figures(run)))
    console.print(table)
    for run in runs:
        if len(run["loss"]) > 1:
            console.print(f"\nloss of {run['folder']}", markup=False, highlight=False)
            console.print(chart(run["loss"]), markup=False, highlight=False)
    if len(runs) > 1:
        apart = Table(box=None, header_style="bold", title="what differs", title_justify="left")
        apart.add_column("field")
        for run in runs:
            apart.add_column(run["folder"], overflow="fold")
        for name, values in differences(runs):
            apart.add_row(name, *values)
        console.print(apart)
    for text in runs[-1]["samples"]:
        console.print(f"sample: {' '.join(text.split())}", markup=False, highlight=False)


def chart(points: Sequence[Sequence[float]], width: int = 72, height: int = 10) -> str:
    """A curve in braille dots, two by four of them a character, with its ends named."""
    values = [value for _, value in thin(points, 2 * width)]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    cells = [[0] * width for _ in range(height)]
    dots = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
    for i, value in enumerate(values):
        x = i * (2 * width - 1) // max(1, len(values) - 1)
        y = round((high - value) / span * (4 * height - 1))
        cells[y // 4][x // 2] |= dots[y % 4][x % 2]
    lines = ["".join(chr(0x2800 + cell) for cell in row) for row in cells]
    lines[0] += f" {high:.3f}"
    lines[-1] += f" {low:.3f}"
    return "\n".join(lines)


def thin(points: Sequence[Sequence[float]], most: int = _POINTS) -> list[tuple[float, float]]:
    """At most so many points: the mean of each stretch of a curve."""
    size = -(-len(points) // most)
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def page(runs: Sequence[Mapping[str, Any]]) -> str:
    """One self-contained page: no script, nothing loaded, everything escaped."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pando.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    curves = {
        "Training loss": ([run["loss"] for run in runs], "nats a target"),
        "Held-back text": ([run["bits"] for run in runs], "bits per byte"),
    }
    drawn = {
        name: Markup(_curves(name, [run["folder"] for run in runs], lines, unit))
        for name, (lines, unit) in curves.items()
        if any(lines)
    }
    return environment.get_template("runs.html.j2").render(
        runs=runs,
        rows=[(name, [dict(figures(run))[name] for run in runs]) for name, _ in figures(runs[0])],
        differences=differences(runs) if len(runs) > 1 else [],
        plots=drawn,
        sources=sorted({name for run in runs for name in run["sources"]}),
        words=words,
    )


def _curves(name: str, labels: Sequence[str], lines: Sequence[Sequence[Sequence[float]]], unit: str) -> str:
    def paint(axes: Axes) -> None:
        for i, (label, line) in enumerate(zip(labels, lines, strict=True)):
            if line:
                points = thin(line)
                mark = "o" if len(points) < 40 else ""
                colour = _COLOURS[i % len(_COLOURS)]
                axes.plot([x for x, _ in points], [y for _, y in points], marker=mark, color=colour, label=label)
        axes.set(xlabel="step", ylabel=unit)
        if len(labels) > 1:
            axes.legend(frameon=False)

    ends = [f"{label} ends at {line[-1][1]:.3f}" for label, line in zip(labels, lines, strict=True) if line]
    return plots.draw(name.lower().replace(" ", "-"), f"{name}: {', '.join(ends)}", paint, 7.4, 3.6)
