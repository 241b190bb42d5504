"""The skin: what adapting a base model to a task leaves behind. Renders a row for the base, reads its answer."""

from pando.skin.prediction import Prediction
from pando.skin.skin import Skin
from pando.skin.store import load_skin

__all__ = ["Prediction", "Skin", "load_skin"]
