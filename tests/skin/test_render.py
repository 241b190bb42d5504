"""Training rows are what requests are, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pando.interface import Message
from pando.model.chat import ChatTemplate, plain_chat
from pando.skin import Skin
from pando.skin.parts import Demonstration, Prompt, Scoring
from pando.skin.render import answer_text, context, input_start, render, reply, training_example
from pando.task import Example
from tests.skin import skins

CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou are hidden<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)


class Template:
    def __init__(self, source: str) -> None:
        self._template = ChatTemplate(source, {})

    def render_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        return self._template.render(messages, add_generation_prompt)


class Plain:
    def render_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        return plain_chat(messages, add_generation_prompt)


def example(output: Any = "good", **inputs: str) -> Example:
    return Example("1", inputs or {"text": "I love it"}, output)


class TestLayout:
    def test_the_shared_part_comes_first_and_the_input_last(self) -> None:
        skin = skins.few()
        one, other = (render(skin, {"text": text}) for text in ("first", "second"))
        assert one[:-1] == other[:-1]
        assert one[-1] == {"role": "user", "content": "first"}
        assert one[0]["content"] == "Good or bad?\nOptions: bad, good\n\nI love it"
        assert [m["role"] for m in one] == ["user", "assistant"] * 2 + ["user"]

    def test_without_demonstrations_there_is_one_turn_and_no_system_turn_of_ours(self) -> None:
        assert render(skins.score(), {"text": "x"}) == [{"role": "user", "content": "Good or bad?\n\nx"}]

    def test_an_input_brings_no_blank_of_its_own(self) -> None:
        skin = skins.score()
        skin = replace(skin, prompt=replace(skin.prompt, blank="[MASK]"))
        (turn,) = render(skin, {"text": "a [MASK] b"})
        assert turn["content"] == "Good or bad?\n\na  b\n\n[MASK]"
        (turn,) = render(skin, {"text": "a [MA[MASK]SK] b"})  # nor makes one by the loss of another
        assert turn["content"] == "Good or bad?\n\na  b\n\n[MASK]"

    def test_several_fields_are_named(self) -> None:
        (turn,) = render(skins.extract(), {"subject": "trip", "text": "to Rome"})
        assert turn["content"] == "Find the city.\n\nsubject: trip\ntext: to Rome"

    def test_objects_are_json_as_grammars_spell_it(self) -> None:
        assert answer_text({"b": "Zürich", "a": [1, None]}) == '{"b": "Zürich", "a": [1, null]}'


class TestReply:
    """What surrounds an answer is read off the template."""

    def test_chatml(self) -> None:
        model = Template(CHATML)
        assert training_example(skins.score(), example(), model) == (
            "<|im_start|>system\nYou are hidden<|im_end|>\n<|im_start|>user\nGood or bad?\n\nI love it<|im_end|>\n"
            "<|im_start|>assistant\n",
            "good<|im_end|>",
        )
        assert reply(skins.score(), model, "bad", end=False) == "bad"

    def test_a_template_with_spaces_around_the_answer(self) -> None:
        assert reply(skins.score(), Template(LLAMA2), "bad", end=True) == " bad </s>"

    def test_no_template(self) -> None:
        prompt, answer = training_example(skins.score(), example(), Plain())
        assert prompt.endswith("\n\nAssistant:")
        assert answer == " good\n\nUser:"
        assert reply(skins.score(), Plain(), "bad", end=False) == " bad"

    def test_demonstrated_answers_look_like_the_answer(self) -> None:
        for model in (Template(CHATML), Template(LLAMA2), Plain()):
            skin = replace(skins.score(), demonstrations=(Demonstration({"text": "a"}, "good"),))
            first = context(skins.score(), model, {"text": "a"})
            assert context(skin, model, {"text": "b"}).startswith(first + reply(skins.score(), model, "good", end=True))


class TestWhereTheInputBegins:
    @pytest.mark.parametrize("text", ["I love it", "assistant", "a", "im_end", "Good or bad?"])
    def test_even_if_its_words_are_elsewhere(self, text: str) -> None:
        for model in (Template(CHATML), Template(LLAMA2), Plain()):
            prompt = context(skins.few(), model, {"text": text})
            start = input_start(model, prompt, text)
            assert prompt[start : start + len(text)] == text
            assert prompt[:start] == context(skins.few(), model, {"text": "~"}).split("~")[0]

    def test_an_input_that_the_template_trims_is_not_found(self) -> None:
        model = Template(CHATML.replace("m.content", "m.content | trim"))
        assert input_start(model, context(skins.score(), model, {"text": "it  "}), "it  ") == 0


class TestTrainingRowsAreRequests:
    @pytest.mark.parametrize("place", range(3))
    def test_of_a_fake(self, place: int) -> None:
        skin = [skins.score(), skins.few(), skins.knn()][place]
        skin = replace(skin, scoring=Scoring(per_token=False, end=True))
        model = skins.model()
        prompt, answer = training_example(skin, example(), model)
        (request,) = skin.ask(model, example())
        assert prompt == request.context  # type: ignore[union-attr]
        assert answer in request.continuations  # type: ignore[union-attr]

    @pytest.mark.real
    @settings(max_examples=40)
    @given(data=st.data())
    def test_token_by_token_on_the_real_base(self, data: st.DataObject, real_model: Any) -> None:
        """pad == eos == the end of the turn, and the template hides a system turn: none of it may matter."""
        text = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40) | st.sampled_from(
            ["<|im_end|>", "a\n", " b", "\n\n", "x<|endoftext|>"]
        )
        labels = tuple(data.draw(st.lists(text.map(str.strip).filter(bool), min_size=2, max_size=3, unique=True)))
        shown = data.draw(st.lists(st.tuples(text, st.sampled_from(labels)), max_size=2))
        skin = Skin(
            name="t",
            kind="classify",
            rung="lora",
            method="score",
            prompt=Prompt(data.draw(text), ("text",), options=data.draw(st.booleans())),
            labels=labels,
            demonstrations=tuple(Demonstration({"text": t}, label) for t, label in shown),
            scoring=Scoring(per_token=False, end=True),
        )
        row = example(data.draw(st.sampled_from(labels)), text=data.draw(text))
        prompt, answer = training_example(skin, row, real_model)
        (request,) = skin.ask(real_model, row)
        (job,) = real_model._compiler.scoring(request, None)
        tokenizer = real_model.base.tokenizer
        ids = tokenizer.encode(prompt)
        (answer_ids,) = tokenizer.encode_continuations(prompt, ids, [answer])
        assert list(job.tokens) == ids
        assert list(job.continuations[labels.index(row.output)]) == answer_ids
        assert answer_ids[-1] in tokenizer.eos_ids
        spoken = real_model.render_chat([*render(skin, row.inputs), {"role": "assistant", "content": row.output}])
        assert spoken.startswith(prompt + answer)

    @pytest.mark.real
    def test_generation_sees_the_same_prompt(self, real_model: Any) -> None:
        skin = replace(skins.extract(), base=None)
        row = example({"city": "Rome"}, subject="trip", text="to Rome")
        prompt, answer = training_example(skin, row, real_model)
        (request,) = skin.ask(real_model, row)
        (job,) = real_model._compiler.generation(request, None)
        assert list(job.tokens) == real_model.base.tokenizer.encode(prompt)
        assert answer == '{"city": "Rome"}<|im_end|>'
