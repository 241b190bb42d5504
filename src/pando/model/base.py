"""A base model on disk: config, tokenizer, identity, and its weights when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pando.errors import BaseModelError
from pando.files import atomic_dir
from pando.interface import Identity
from pando.model.checkpoint import INDEX, load_model, read_json, weight_files
from pando.model.config import ModelConfig
from pando.model.families import read_config
from pando.model.manifest import NAME, Manifest, locked, make_manifest, read_manifest, remembered, verify
from pando.model.sentence import FILES, Embedding, read_embedding
from pando.settings import load_settings

if TYPE_CHECKING:
    import torch

    from pando.model.tokenizer import Tokenizer
    from pando.model.transformer import Transformer

DEFAULT = "smollm2-135m"
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    INDEX,
    *FILES,
)


@dataclass(frozen=True)
class BaseModel:
    """A base model that is whole on disk.

    Attributes:
        folder: a Hugging Face folder.
        identity: name, content hash over config, tokenizer and weights, and where it came from.
        config: its shape.
    """

    folder: Path
    identity: Identity
    config: ModelConfig

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer and chat template."""
        from pando.model.tokenizer import Tokenizer

        return Tokenizer(self.folder, reads=not self.config.causal)

    @cached_property
    def embedding(self) -> Embedding:
        """How it makes one vector of a text."""
        return read_embedding(self.folder)

    def module(self, device: str = "cpu", dtype: torch.dtype | None = None) -> Transformer:
        """Its weights on a device, as `dtype` (float32 by default), without gradients.

        Raises:
            BaseModelError: a weights file is damaged or does not fit the config; names the file or key.
        """
        import torch

        return load_model(self.folder, self.config, device, dtype or torch.float32)


def open_base(ref: str | Path = DEFAULT) -> BaseModel:
    """Opens a base that is on this machine; nothing is fetched.

    Args:
        ref: the name or hub id of a pulled base, a Hugging Face folder, or a GGUF file (converted once, and kept in
            the cache under its content hash).

    Raises:
        BaseModelError: no such base, or a damaged or unsupported one; names file and key.
    """
    text = str(ref)
    if text.lower().endswith(".gguf"):
        return _open_gguf(Path(text).absolute())
    if is_pulled(text):
        return _open_ours(pulled_folder(text))
    folder = Path(text).expanduser().absolute()
    if text and folder.is_dir():
        names = base_files(folder)
        return _base(folder, remembered(load_settings().home / "cache", folder, names, folder.name))
    raise _unknown(text)


def is_pulled(name: str) -> bool:
    """Whether a base of this name or hub id is on this machine."""
    return is_name(name) and (pulled_folder(name) / NAME).exists()


def pulled_folder(name: str) -> Path:
    """Where the base of this name or hub id is kept once it is pulled."""
    return load_settings().bases / name.replace("/", "--")


def pulled_bases() -> list[str]:
    """Names of the bases that are on this machine."""
    return sorted(path.parent.name for path in load_settings().bases.glob(f"*/{NAME}"))


def base_files(folder: Path) -> list[str]:
    """The files that make up the base in a Hugging Face folder.

    Raises:
        BaseModelError: the folder lacks a config, a tokenizer or safetensors weights.
    """
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise BaseModelError(f"{folder} has no {name}: it is not a Hugging Face model folder that can be used")
    return [name for name in SMALL_FILES if (folder / name).is_file()] + weight_files(folder)


def write_gguf_base(gguf: Path, folder: Path, name: str, source: str, revision: str | None = None) -> None:
    """Converts a GGUF file into the empty `folder` and writes its manifest."""
    from pando.model.gguf import convert

    general = convert(gguf, folder)
    licence = general.get("license")
    make_manifest(folder, base_files(folder), name, source, revision, licence).write(folder / NAME)


def _open_ours(folder: Path) -> BaseModel:
    manifest = read_manifest(folder / NAME)
    if manifest is None:
        raise _unknown(folder.name)
    current = verify(folder, manifest)
    if current != manifest:
        current.write(folder / NAME)
    return _base(folder, current)


def _open_gguf(path: Path) -> BaseModel:
    if not path.is_file():
        raise BaseModelError(f"{path}: no such file")
    cache = load_settings().home / "cache"
    digest = remembered(cache, path.parent, [path.name], path.stem).files[path.name].sha256
    folder = cache / "gguf" / digest.removeprefix("sha256:")[:32]
    with locked(folder):
        try:
            return _open_ours(folder)
        except BaseModelError:  # not converted yet, or the cache is broken
            with atomic_dir(folder) as new:
                write_gguf_base(path, new, path.stem, str(path), digest)
    return _open_ours(folder)


def _base(folder: Path, manifest: Manifest) -> BaseModel:
    try:
        config = read_config(read_json(folder / "config.json"))
    except BaseModelError as error:
        raise BaseModelError(f"{folder}: {error}") from None
    return BaseModel(folder, manifest.identity, config)


def is_name(text: str) -> bool:
    """Whether a base may be called so: "name" or "owner/name"."""
    parts = text.split("/")
    return len(parts) <= 2 and all(part and not part.startswith((".", "-", "~")) for part in parts)


def _unknown(text: str) -> BaseModelError:
    if text == DEFAULT:
        return BaseModelError(f"the base {DEFAULT} is not on this machine; fetch it once with: pando pull {DEFAULT}")
    hint = f"fetch it with: pando pull {text}" if text.count("/") == 1 else "see: pando pull --help"
    have = f"here are {', '.join(pulled_bases())}" if pulled_bases() else "none is pulled yet"
    return BaseModelError(f"no base model {text!r}: neither a pulled one ({have}) nor a folder or .gguf file; {hint}")
