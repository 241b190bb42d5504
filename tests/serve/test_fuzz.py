"""Whatever JSON is sent, the answer is 200, or a 4xx of the usual shape; never a 500 and never silence."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pando.serve.wire import ChatBody, ClassifyBody, CompletionBody, EmbeddingBody, RerankBody
from tests.serve.conftest import Running
from tests.serve.test_conformance import BASE, CHAT, CLASSIFY, EMBED, RERANK, TEXT

MODELS = {CHAT: ChatBody, TEXT: CompletionBody, EMBED: EmbeddingBody, CLASSIFY: ClassifyBody, RERANK: RerankBody}
ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["", "\ud800", "left"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    route = draw(st.sampled_from(list(MODELS)))
    model = MODELS[route]
    names = sorted({*model.model_fields, *model.neutral, *model.harmless} - {"model"})
    return route, draw(st.dictionaries(st.sampled_from(names), ANY, max_size=3))


@given(call=calls())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_is_answered_in_shape(shared: Running, call: tuple[str, dict[str, Any]]) -> None:
    route, sent = call
    raw = json.dumps({"model": "fake"} | BASE[route] | sent).encode()
    answer = shared.http.post(f"/v1/{route}", content=raw, headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["code"]
