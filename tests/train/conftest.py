from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from pando.train import plan


@pytest.fixture(scope="module", autouse=True)
def short_forecasts() -> Iterator[None]:
    """Runs here are shorter than the seconds for which a forecast times steps: it takes as few as it may."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "measure", partial(plan.measure, seconds=0.0))
        yield
