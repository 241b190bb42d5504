"""What is served under which name. A name is resolved when a request comes, so that a skin that was adapted anew is
served from the next request on, and one that was added is found without a restart."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from pando.errors import PandoError, SkinError
from pando.files import patiently
from pando.interface import LanguageModel
from pando.serve.errors import ApiError
from pando.skin import Skin, load_skin

_CARD = "skin.yaml"


@dataclass(frozen=True)
class Served:
    """What a name stands for at this moment.

    Attributes:
        name: the model name in requests.
        skin: None for the base itself.
        folder: the skin's folder.
        version: content hash of the skin, or of the base.
        created: when it was made, in seconds since 1970; 0 for the base.
    """

    name: str
    model: LanguageModel
    version: str
    skin: Skin | None = None
    folder: Path | None = None
    created: int = 0

    @property
    def fingerprint(self) -> str:
        """The version, short: answers with one fingerprint came from one skin on one base."""
        return f"fp_{self.version.removeprefix('sha256:')[:12]}"

    @property
    def adapter(self) -> str | None:
        """What the engine is given to apply the skin's adapter, if it has one."""
        return str(self.skin.adapter) if self.skin and self.skin.adapter else None


class Registry:
    """The base and the skins below one folder.

    Args:
        folder: one skin, the folder that `pando adapt --out` wrote (its chosen skin is served), or a folder of such;
            None serves the base alone.

    Raises:
        PandoError: a skin is broken or on another base, there is none, or two have one name.
    """

    def __init__(self, model: LanguageModel, folder: Path | None = None) -> None:
        self.model = model
        self._folder = folder
        self._lock = threading.Lock()
        self._base = Served(model.identity.name, model, model.identity.hash)
        self._skins: dict[Path, tuple[tuple[int, ...], Served]] = {}
        if folder is not None and not find_skins(folder):
            raise SkinError(_nothing(folder))
        _, wrong = self._look()
        if wrong:
            raise wrong[0]

    def served(self) -> list[Served]:
        """The base, then the skins by name, as they are on disk now. What is wrong with others is told on standard
        error."""
        found, wrong = self._look()
        for error in wrong:
            print(f"pando serve: {error}", file=sys.stderr, flush=True)
        return found

    def _look(self) -> tuple[list[Served], list[PandoError]]:
        """What can be served, and what is wrong with the rest."""
        wrong: list[PandoError] = []
        skins: list[Served] = []
        with self._lock:
            folders = find_skins(self._folder) if self._folder else []
            # one that has broken is still known by its name, and whoever asks for it is told
            self._skins = {folder: known for folder, known in self._skins.items() if folder in folders}
            for folder in folders:
                try:
                    self._skins[folder] = _, skin = self._fresh(folder)
                    skins.append(skin)
                except PandoError as error:
                    wrong.append(error)
        by_name = {self._base.name: self._base}
        for skin in sorted(skins, key=lambda skin: skin.name):
            if skin.name in by_name:
                other = by_name[skin.name].folder or "the base model"
                wrong.append(
                    SkinError(f"{skin.folder} and {other} are both named {skin.name!r}: rename one in its {_CARD}")
                )
            else:
                by_name[skin.name] = skin
        return list(by_name.values()), wrong

    def resolve(self, name: str) -> Served:
        """What `name` stands for now.

        Raises:
            ApiError: 404, nothing is served under this name.
            PandoError: its files changed and are broken now.
        """
        if name == self._base.name:
            return self._base
        if (known := self._known(name)) is not None:
            return known
        found = {skin.name: skin for skin in self.served()}
        if name not in found:
            names = ", ".join(found)
            raise ApiError(
                404, f"no model is named {name!r}; served are {names}", param="model", code="model_not_found"
            )
        return found[name]

    def _known(self, name: str) -> Served | None:
        """A skin that was served under this name, as it is on disk now; None if it is no longer there."""
        with self._lock:
            folder = next((folder for folder, (_, skin) in self._skins.items() if skin.name == name), None)
            if folder is None:
                return None
            try:
                self._skins[folder] = _, skin = self._fresh(folder)
            except PandoError:
                if (folder / _CARD).exists():
                    raise
                return None
            return skin if skin.name == name else None

    def _fresh(self, folder: Path) -> tuple[tuple[int, ...], Served]:
        """The skin in a folder and the stamp of its files, read again only if that changed."""

        def read() -> tuple[tuple[int, ...], Served]:
            card = (folder / _CARD).stat()
            stamp = (card.st_mtime_ns, card.st_size, card.st_ino)
            known = self._skins.get(folder)
            if known and known[0] == stamp:
                return known
            skin = load_skin(folder, model=self.model)
            return stamp, Served(skin.name, self.model, skin.version, skin, folder, int(card.st_mtime))

        try:
            return patiently(read, FileNotFoundError, PandoError)
        except FileNotFoundError:
            raise SkinError(f"the skin in {folder} is gone") from None


def find_skins(folder: Path) -> list[Path]:
    """The skin folders that `folder` stands for, in order of their paths."""
    if not folder.is_dir():
        return []
    own = _skin_in(folder)
    if own is not None:
        return [own]
    return sorted(skin for below in folder.iterdir() if below.is_dir() and (skin := _skin_in(below)))


def _skin_in(folder: Path) -> Path | None:
    """The folder itself if it is a skin, or the chosen one of a ladder."""
    return next((place for place in (folder, folder / "skin") if (place / _CARD).is_file()), None)


def _nothing(folder: Path) -> str:
    if not folder.is_dir():
        return f"there is no folder {folder}; --skins takes a skin, or a folder of skins"
    if (folder / "report.json").exists():
        return f"the ladder in {folder} chose no skin; serve one of its rungs, as --skins {folder / 'skins' / 'floor'}"
    return f"no skin in {folder}: neither {_CARD} in it nor in a folder below"
