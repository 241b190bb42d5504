"""The base that a skin runs on: the right one, loaded once for all skins that share it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from pando.errors import SkinError
from pando.interface import Identity, LanguageModel

if TYPE_CHECKING:
    from pando.skin.skin import Skin

_loaded: WeakValueDictionary[str, LanguageModel] = WeakValueDictionary()  # by content hash


def own_base(skin: Skin) -> LanguageModel:
    """The base that the skin was made on, loaded when first needed.

    Raises:
        BaseModelError: it is not on this machine.
    """
    from pando.engine import load

    assert skin.base is not None
    found = _loaded.get(skin.base.hash)
    if found is None:
        found = load(reference(skin.base))
        _loaded[found.identity.hash] = found
    return found


def reference(base: Identity) -> str:
    """What to open the base by: its name if it was pulled, else the folder or file that it came from."""
    from pando.model.base import pulled_bases, pulled_folder

    pulled = pulled_folder(base.name).name in pulled_bases()
    return base.source if not pulled and Path(base.source).exists() else base.name


def checked(skin: Skin, model: LanguageModel, *, force: bool = False) -> LanguageModel:
    """The model, if the skin may run on it; warns where it computes in other numbers than were measured.

    Raises:
        SkinError: another base than the skin was made on, and `force` is not given.
    """
    if skin.base is None:
        return model
    if model.identity.hash != skin.base.hash and not force:
        raise SkinError(
            f"the skin {skin.name} was made on {_named(skin.base.name, skin.base.hash)} and this is "
            f"{_named(model.identity.name, model.identity.hash)}: use its own base, or force it to run here"
        )
    measured = skin.card.get("dtype")
    if measured and measured != model.dtype:
        warnings.warn(
            f"the skin {skin.name} was measured in {measured} and runs in {model.dtype}: its quality may differ",
            stacklevel=3,
        )
    return model


def _named(name: str, digest: str) -> str:
    return f"{name} ({digest.removeprefix('sha256:')[:12]})"
