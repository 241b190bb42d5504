"""The plots of a report as inline SVG: drawn by matplotlib, text kept as text, no ids that clash in one page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pando.report import words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, QUIET, FAINT = "#22303a", "#8494a0", "#dde4e8"
LEAF, SKY, BARK = "#2f7d5b", "#4a7fb5", "#c0763a"  # chosen, others, targets and warnings

_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


def draw(name: str, description: str, paint: Callable[[Axes], None], width: float, height: float) -> str:
    """One figure of `width` x `height` inches as an `<svg>` element; `description` is read out by screen readers."""
    import html

    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the reader's fonts show the text, not matplotlib's
        figure = Figure(figsize=(width, height), layout="constrained")
        paint(figure.subplots())
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[a-z]+[a-z0-9.]*_\d+"', "", svg)  # group names; clip paths have hashes
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )
    label = html.escape(description, quote=True)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" style="max-width:{width:g}in" ', 1)


def quality_against_cost(report: Mapping[str, Any]) -> str:
    """Every measured rung at its cost (logarithmic) and confirmed quality with its interval; targets as lines."""
    rungs = [one for one in report["rungs"] if one["dev"] and one["cost_per_1k"] is not None]
    target = report.get("target") or {}

    def paint(axes: Axes) -> None:
        for one in rungs:
            chosen = one["name"] == report["chosen"]
            dev, cost = one["dev"], one["cost_per_1k"]
            low = dev["quality"] if dev["low"] is None else dev["low"]
            high = dev["quality"] if dev["high"] is None else dev["high"]
            colour = LEAF if chosen else SKY
            axes.plot([cost, cost], [low, high], color=colour, linewidth=2, alpha=0.45, solid_capstyle="round")
            axes.plot(cost, dev["quality"], "o", color=colour, markersize=9 if chosen else 7)
            crowded = any(_near(one, other) for other in rungs[: rungs.index(one)])
            axes.annotate(
                one["name"],
                (cost, dev["quality"]),
                xytext=(-9 if crowded else 9, 0),
                textcoords="offset points",
                ha="right" if crowded else "left",
                va="center",
                weight="bold" if chosen else "normal",
                color=colour,
            )
        if target.get("quality") is not None:
            axes.axhline(target["quality"], color=BARK, linewidth=1, linestyle=(0, (5, 4)))
            axes.annotate(
                "wanted", (0, target["quality"]), xycoords=("axes fraction", "data"), xytext=(2, 3),
                textcoords="offset points", color=BARK, fontsize=9,
            )  # fmt: skip
        if target.get("cost_per_1k") is not None:
            axes.axvline(target["cost_per_1k"], color=BARK, linewidth=1, linestyle=(0, (5, 4)))
        axes.set_xscale("log") if all(one["cost_per_1k"] > 0 for one in rungs) else axes.set_xscale(
            "symlog", linthresh=1e-6
        )
        axes.xaxis.set_major_formatter(lambda cost, _: "$" + words.dollars(cost))
        axes.margins(x=0.18, y=0.1)
        axes.set_xlabel("cost per 1,000 calls, US dollars")
        axes.set_ylabel(report.get("metric") or "quality")

    description = "Quality against cost: " + ", ".join(
        f"{one['name']} {one['dev']['quality']:.3f} at ${one['cost_per_1k']:.2g}" for one in rungs
    )
    return draw("cost", description, paint, 7.4, 4.0)


def _near(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the names of two rungs would cover each other on the same side of their points."""
    low, high = sorted((max(one["cost_per_1k"], 1e-6), max(other["cost_per_1k"], 1e-6)))
    return bool(high / low < 2 and abs(one["dev"]["quality"] - other["dev"]["quality"]) < 0.02)


def reliability(calibration: Mapping[str, Any]) -> str:
    """How often answers are right, by how sure they are; the area of a point is its number of rows."""
    bins = [one for one in calibration["bins"] if one["n"]]
    most = max((one["n"] for one in bins), default=1)

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle=(0, (2, 3)))
        confidence, accuracy = [one["confidence"] for one in bins], [one["accuracy"] for one in bins]
        axes.plot(confidence, accuracy, color=LEAF, linewidth=1.2, alpha=0.5)
        axes.scatter(
            confidence, accuracy, s=[20 + 160 * one["n"] / most for one in bins], color=LEAF, alpha=0.85, linewidth=0
        )
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence", ylabel="share that is right")

    return draw("reliability", "Share of right answers by confidence", paint, 3.9, 3.4)


def coverage(curve: Sequence[Sequence[float]]) -> str:
    """Accuracy of the surest answers, by the share that is answered."""
    points = sorted((float(one[0]), float(one[1])) for one in curve)

    def paint(axes: Axes) -> None:
        axes.plot([x for x, _ in points], [y for _, y in points], color=LEAF, linewidth=1.8)
        axes.set(xlim=(0, 1.02), xlabel="share of rows that is answered", ylabel="accuracy of those")
        axes.set_ylim(top=1.005)

    return draw("coverage", "Accuracy against coverage", paint, 3.9, 3.4)


def confusion(labels: Sequence[str], columns: Sequence[str], matrix: Sequence[Sequence[int]]) -> str:
    """Truth by answer; shade is the share of the row, numbers are rows."""
    size = max(len(labels), len(columns))

    def paint(axes: Axes) -> None:
        shares = [[count / max(1, sum(row)) for count in row] for row in matrix]
        from matplotlib.colors import LinearSegmentedColormap

        axes.imshow(
            shares, cmap=LinearSegmentedColormap.from_list("leaf", ["#ffffff", LEAF]), vmin=0, vmax=1, aspect="auto"
        )
        for i, row in enumerate(matrix):
            for j, count in enumerate(row):
                if count:
                    dark = shares[i][j] > 0.55
                    axes.text(j, i, f"{count}", ha="center", va="center", color="white" if dark else INK, fontsize=9)
        slant = size > 4 or max(map(len, columns)) > 12
        axes.set_xticks(
            range(len(columns)),
            [shorten(name) for name in columns],
            rotation=40 if slant else 0,
            ha="right" if slant else "center",
        )
        axes.set_yticks(range(len(labels)), [shorten(name) for name in labels])
        axes.set(xlabel="answer", ylabel="truth")
        axes.grid(False)
        axes.tick_params(length=0)

    side = 1.8 + 0.42 * size
    return draw(
        "confusion",
        "Confusion of labels: truth by answer",
        paint,
        min(7.6, max(3.6, side + 0.8)),
        min(7.6, max(2.8, side)),
    )


def fields(errors: Sequence[Mapping[str, Any]]) -> str:
    """What went right and wrong in each field of an extraction."""
    kinds = (("right", LEAF), ("wrong", BARK), ("missing", "#d9b48f"), ("extra", QUIET))

    def paint(axes: Axes) -> None:
        names = [shorten(one["field"], 28) for one in errors]
        left = [0] * len(errors)
        for kind, colour in kinds:
            counts = [one.get(kind, 0) for one in errors]
            axes.barh(range(len(errors)), counts, left=left, color=colour, height=0.62, label=kind)
            left = [a + b for a, b in zip(left, counts, strict=True)]
        axes.set_yticks(range(len(errors)), names)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("rows")
        axes.legend(ncols=4, frameon=False, loc="lower left", bbox_to_anchor=(0, 1))

    return draw("fields", "Right, wrong, missing and extra values by field", paint, 7.4, 1.3 + 0.32 * len(errors))


def shorten(text: str, most: int = 24) -> str:
    """Cuts a long label so that it fits beside an axis."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"
