"""`pando tokenizer`: a tokenizer of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Train a tokenizer on a corpus.", rich_markup_mode=None)


@app.callback()
def _tokenizer() -> None:
    """Train a tokenizer on a corpus."""


@app.command()
def train(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The corpus file, corpus.yaml.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The folder of the tokenizer.")] = Path("tokenizer"),
    vocab_size: Annotated[int, typer.Option(min=300, help="Tokens, special ones included.")] = 16384,
    sample_mb: Annotated[float, typer.Option(min=0.001, max=1e6, help="At most so much text, in MB.")] = 100,
    threads: Annotated[int, typer.Option(min=0, help="Worker threads; 0 is every core.")] = 0,
) -> None:
    """Train byte-level BPE on a seeded sample of the documents that the corpus file keeps."""
    import shutil

    from pando.cli.corpus import protected, work_folder
    from pando.corpus import bpe, engine
    from pando.corpus.build import Build
    from pando.corpus.config import Training, load_config
    from pando.files import atomic_dir, replaceable

    config = load_config(file).model_copy(update={"tokenizer": Training(vocab_size=vocab_size, sample_mb=sample_mb)})
    out = replaceable(out, "tokenizer.json", *bpe.FILES)
    engine.start(threads)
    build = Build(config, work_folder(out), protected(config))
    parts = build.parts()
    made = build.tokenizer(parts, build.decide(parts))
    with atomic_dir(out) as aside:
        for path in made.folder.iterdir():
            shutil.copyfile(path, aside / path.name)
    print(f"{out}: {made.vocab_size:,} tokens")
