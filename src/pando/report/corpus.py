"""A corpus in words, tables and one self-contained page: what each stage took, the token mix, one document's fate."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

_WIDTH = 120


def summary(manifest: Mapping[str, Any]) -> str:
    """The end of a build: sources, splits, hash."""
    splits = ", ".join(
        f"{name} {_sum(listed, 'tokens')} tokens in {_sum(listed, 'documents')} documents"
        for name, listed in manifest["splits"].items()
    )
    lines = [_table(_source_rows(manifest)), splits]
    if "protected" in manifest:
        items, short = manifest["protected"]["items"], manifest["protected"]["too_short"]
        lines.append(f"{items:,} items of evaluations were looked for; {short:,} are too short to be")
    return "\n".join([*lines, manifest["hash"]])


def stats(found: Mapping[str, Any]) -> str:
    """The tables of `pando corpus stats`: sources, what each rule took, examples."""
    masked = ", ".join(f"{count:,} {kind}" for kind, count in found["masked"].items() if count)
    lines = [summary(found["manifest"]), "", f"{found['kept']:,} of {found['read']:,} documents are kept"]
    if found["dropped"]:
        lines += ["", _table(_dropped_rows(found))]
    if masked:
        lines += ["", f"masked in what is kept: {masked}"]
    return "\n".join(lines)


def as_json(found: Mapping[str, Any]) -> dict[str, Any]:
    """The same as JSON."""
    dropped = [
        {"stage": stage, "rule": rule, "source": source, "documents": sums[0], "bytes": sums[1]}
        for (stage, rule), by in found["dropped"].items()
        for source, sums in by.items()
    ]
    examples = [{"stage": s, "rule": r, "examples": listed} for (s, r), listed in found["examples"].items()]
    return {**found, "dropped": dropped, "examples": examples}


def document(row: Mapping[str, Any]) -> str:
    """What became of one document, in words."""
    lines = [f"{row['id']}  {row['file']}, row {row['row']} (source {row['source']}, {row['bytes']:,} bytes)"]
    if row["kept"]:
        lines.append(f"kept: {row.get('tokens', 0):,} tokens")
    else:
        because = f"dropped by {row['stage']}: {row['rule'].replace('_', ' ')}"
        if row.get("threshold") is not None and row.get("score") is not None:
            because += f" (score {row['score']:.4g}, threshold {row['threshold']:.4g})"
        if row.get("duplicate_of"):
            because += f", of {row['duplicate_of']}"
        lines.append(because + (f": {row['detail']}" if row.get("detail") else ""))
    told = set(
        [
            "id",
            "file",
            "row",
            "source",
            "bytes",
            "kept",
            "stage",
            "rule",
            "score",
            "threshold",
            "duplicate_of",
            "detail",
            "tokens",
            "number",
            "content",
        ]
    )
    scores = [f"{name} {_number(value)}" for name, value in row.items() if name not in told]
    return "\n".join([*lines, "; ".join(scores)])


def traced(found: Mapping[str, Any]) -> str:
    """Where a token came from, in words."""
    before, text, after = (part.replace("\n", "\\n") for part in found["text"])
    place = f"{found['shard']} token {found['offset']}: token {found['token']} of its document"
    first, end = found["bytes"]
    return f"{place}, bytes {first} to {end}\n{before}[{text}]{after}\n{document(found['document'])}"


def what_if(rows: Sequence[Mapping[str, Any]], changes: Sequence[str]) -> str:
    """What other settings would keep."""
    head = ["source", "documents", "then", "gained", "lost", "tokens", "then"]
    names = ["documents_before", "documents_after", "gained", "lost", "tokens_before", "tokens_after"]
    body = [[row["source"], *(f"{row[name]:,}" for name in names)] for row in rows]
    body.append(["total", *(f"{sum(row[name] for row in rows):,}" for name in names)])
    return f"with {', '.join(changes)}\n{_table([head, *body])}"


def page(found: Mapping[str, Any]) -> str:
    """The page of a corpus: no script, nothing loaded, every text escaped."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pando.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("corpus.html.j2").render(
        manifest=found["manifest"],
        found=found,
        sources=_source_rows(found["manifest"]),
        dropped=_dropped_rows(found),
        taken=Markup(_taken(found)) if found["dropped"] else "",
        mix=Markup(_mix(found["manifest"])),
    )


def _source_rows(manifest: Mapping[str, Any]) -> list[list[str]]:
    rows = [["source", "licence", "read", "kept", "tokens", "asked", "in train", "repeats"]]
    for one in manifest["sources"]:
        numbers = (one["read"], one["documents"], one["tokens"], one["train_tokens_asked"], one["train_tokens"])
        rows.append([one["name"], one["licence"], *(f"{n:,}" for n in numbers), f"{one['repeats']:.2f}"])
    return rows


def _dropped_rows(found: Mapping[str, Any]) -> list[list[str]]:
    rows = [["stage", "rule", "source", "documents", "MB", "example"]]
    for (stage, rule), by in found["dropped"].items():
        for place, (source, (count, size)) in enumerate(sorted(by.items())):
            example = found["examples"][stage, rule][0]["id"][:12] if not place else ""
            rows.append([stage, rule, source, f"{count:,}", f"{size / 1e6:,.2f}", example])
    return rows


def _taken(found: Mapping[str, Any]) -> str:
    """Documents that each stage took, by source."""
    from pando.report.plots import draw

    stages = list(dict.fromkeys(stage for stage, _ in found["dropped"]))
    sources = [one["name"] for one in found["manifest"]["sources"]]

    def paint(axes: Any) -> None:
        left = [0] * len(stages)
        for source in sources:
            mine = [
                sum(by.get(source, [0])[0] for (s, _), by in found["dropped"].items() if s == stage) for stage in stages
            ]
            axes.barh(stages, mine, left=left, label=source, height=0.6)
            left = [a + b for a, b in zip(left, mine, strict=True)]
        axes.invert_yaxis()
        axes.set_xlabel("documents dropped")
        axes.legend(ncols=4, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), fontsize=8)

    return draw("taken", "Documents dropped by each stage, by source", paint, 7.4, 1.4 + 0.4 * len(stages))


def _mix(manifest: Mapping[str, Any]) -> str:
    """Tokens of each source in the training split, asked and got."""
    from pando.report.plots import LEAF, QUIET, draw

    names = [one["name"] for one in manifest["sources"]]

    def paint(axes: Any) -> None:
        places = range(len(names))
        for key, label, colour, shift in (
            ("train_tokens_asked", "asked", QUIET, -0.2),
            ("train_tokens", "got", LEAF, 0.2),
        ):
            values = [one[key] / 1e6 for one in manifest["sources"]]
            axes.barh([p + shift for p in places], values, height=0.38, label=label, color=colour)
        axes.set_yticks(list(places), names)
        axes.invert_yaxis()
        axes.set_xlabel("million tokens in the training split")
        axes.legend(ncols=2, frameon=False, loc="lower left", bbox_to_anchor=(0, 1))

    return draw("mix", "Token mix asked and got, by source", paint, 7.4, 1.3 + 0.45 * len(names))


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Columns parted by blanks; words stand left, numbers right. Widths fit, however many columns."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for place, name in enumerate(rows[0]):
        numeric = len(rows) > 1 and all(row[place][:1].isdigit() for row in rows[1:])
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows[1:]:
        table.add_row(*row)
    file = io.StringIO()
    Console(file=file, width=_WIDTH, color_system=None, markup=False, emoji=False).print(table)
    return file.getvalue().rstrip()


def _sum(listed: Sequence[Mapping[str, Any]], what: str) -> str:
    return f"{sum(one[what] for one in listed):,}"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
