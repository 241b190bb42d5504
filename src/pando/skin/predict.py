"""Many inputs through a skin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pando.errors import PandoError
from pando.interface import Handle, LanguageModel
from pando.skin.prediction import Prediction

if TYPE_CHECKING:
    from pando.skin.skin import Input, Skin


def predict_each(skin: Skin, inputs: Sequence[Input], model: LanguageModel | None) -> list[Prediction | PandoError]:
    """Answers in the order of the inputs, all asked at once; an input that cannot be answered gives its error.

    Args:
        model: what is asked; may be None for skins that ask nothing.
    """
    asked: list[list[Handle] | PandoError] = []
    try:
        for item in inputs:
            asked.append(_submit(skin, item, model))
        return [_answer(skin, item, handles) for item, handles in zip(inputs, asked, strict=True)]
    except BaseException:
        for handles in asked:
            for handle in handles if isinstance(handles, list) else []:
                handle.abort()
        raise


def _submit(skin: Skin, item: Input, model: LanguageModel | None) -> list[Handle] | PandoError:
    if model is None:
        return []
    try:
        return [model.submit(request) for request in skin.ask(model, item)]
    except PandoError as error:
        return error


def _answer(skin: Skin, item: Input, handles: list[Handle] | PandoError) -> Prediction | PandoError:
    if isinstance(handles, PandoError):
        return handles
    try:
        return skin.answer(item, [handle.result() for handle in handles])
    except PandoError as error:
        return error
