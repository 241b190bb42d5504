"""`pando export`: a base as a Hugging Face folder or a GGUF file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Form(StrEnum):
    """What to write."""

    hf = "hf"
    gguf = "gguf"


def command(
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE", help="A pulled base, a Hugging Face folder or a .gguf file.", show_default=False
        ),
    ],
    to: Annotated[
        Form, typer.Option("--to", help="hf: a folder for transformers and vLLM; gguf: a file for llama.cpp.")
    ],
    out: Annotated[Path, typer.Option(help="The folder or file to write.", show_default=False)],
    dtype: Annotated[
        str, typer.Option(help="Of the weights: float32, float16, bfloat16, or int8 (gguf only, llama.cpp's Q8_0).")
    ] = "float32",
    force: Annotated[bool, typer.Option("--force", help="Replace what is at --out.")] = False,
) -> None:
    """Write a base as a Hugging Face folder or a GGUF file."""
    from pando.errors import PandoError
    from pando.files import replaceable
    from pando.model.base import open_base
    from pando.model.export import HF_FILES, licence_of, write_hf
    from pando.model.gguf_write import DTYPES, write_gguf

    known = [name for name in DTYPES if to is Form.gguf or name != "int8"]
    if dtype not in known:
        raise PandoError(f"--dtype {dtype!r} cannot be written with --to {to.value}; use {', '.join(known)}")
    if out.exists() and not force:
        raise PandoError(f"{out} exists already; choose another --out, or replace it with --force")
    source = open_base(base)
    if to is Form.hf:
        out = replaceable(out, "config.json", *HF_FILES)
        write_hf(source, out, dtype)
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_gguf(source, out, dtype, licence_of(source))
        size = out.stat().st_size
    print(f"{out}: {source.identity.name} as {to.value}, {dtype}, {size / 1e6:,.1f} MB")
