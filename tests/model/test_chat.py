from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pando.errors import BaseModelError, PandoError, RequestError
from pando.model import sandbox
from pando.model.chat import ChatTemplate, plain_chat

SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi {{ 7 * 7 }} <b>&</b>"},
    {"role": "assistant", "content": " Hello. "},
    {"role": "user", "content": "naïve 🎉?"},
]
CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""
# In the manner of Llama 2 and 3, Mistral, Qwen, Gemma and SmolLM3: what their templates use, in few lines.
TEMPLATES = {
    "chatml": CHATML,
    "llama2": """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message =
 messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}
{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}
{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}
{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}
{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}
{% endif %}{% endfor %}""",
    "llama3": """{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- "<|start|>system\\n" ~ date_string ~ "\\n\\n" ~ system_message }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|start|>' + message['role'] + '\\n\\n'+ message['content'] | trim + '<|eot|>' }}
    {%- endif %}
{%- endfor %}
{%- if tools is not none %}{{- tools | tojson(indent=4) }}{%- endif %}
{{- messages | tojson }}""",
    "qwen3": """{%- set ns = namespace(multi=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
  {%- set index = (messages|length - 1) - loop.index0 %}
  {%- if ns.multi and message.role == "user" and not(message.content.startswith('<x>') and message.content != '') %}
    {%- set ns.multi = false %}{%- set ns.last = index %}
  {%- endif %}
{%- endfor %}
{%- for message in messages %}
  {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
  {{- message.role + ':' + content.split('</think>')[-1].lstrip('\\n') }}{{ loop.last }}{{ loop.index0 > ns.last }}
  {{- [1, 2]|join(', ') }}{{ {'a': message.role}.items()|list }}
  {{- content|replace('i', 'j')|upper }}{{ content.replace('H', 'J', 1) }}{{ '+'.join(['a', 'b']) }}
{%- endfor %}""",
    "gemma": """{{ bos_token }}{% macro say(role, text) %}<turn>{{ role }}
{% generation %}{{ text | trim }}{% endgeneration %}<end>
{% endmacro %}{% for message in messages %}{% if message.role == 'system' %}{% continue %}{% endif %}
{{ say('model' if message.role == 'assistant' else message.role, message.content) }}{% endfor %}
{{ 3 * 'ab' ~ 2 ** 5 }}{{ loop is defined }}
{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|list }}
{{ messages|map(attribute='role')|unique|sort|join('+') }}{{ range(3)|list }}{{ dict(a=1) }}{{ missing }}""",
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompt", [True, False])
def test_renders_as_transformers_does(name: str, prompt: bool) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    wanted, _ = render_jinja_template(
        conversations=[CHAT], chat_template=TEMPLATES[name], add_generation_prompt=prompt, **SPECIALS
    )
    assert ChatTemplate(TEMPLATES[name], SPECIALS).render(CHAT, prompt) == wanted[0]


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), st.text()), min_size=1, max_size=6))
def test_any_content_goes_through_untouched(turns) -> None:
    messages = [{"role": role, "content": content} for role, content in turns]
    template = ChatTemplate("{% for m in messages %}{{ m.role ~ '|' + m.content }}\n{% endfor %}", {})
    assert template.render(messages) == "".join(f"{role}|{content}\n" for role, content in turns)


def growing(start: str, change: str) -> str:
    """A template whose n.x is changed a hundred times."""
    return f"{{% set n = namespace(x={start}) %}}{{% for i in range(99) %}}{change}{{% endfor %}}{{{{ n.x }}}}"


ATTACKS = {
    "attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attr filter": "{{ messages|attr('__class__') }}",
    "self": "{{ self.__init__.__globals__ }}",
    "format string": "{{ '{0.__class__}'.format(messages) }}",
    "wide format": "{{ '{:>9999999999}'.format(1) }}",
    "percent": "{{ '%9999999999d' % 1 }}",
    "change the messages": "{{ messages.append(1) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "huge range": "{% for i in range(1000000000) %}x{% endfor %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "long loops over text": "{% set x = 'a' * 4000000 %}{% for i in x %}{% for j in x %}{% endfor %}{% endfor %}",
    "lists in a loop": "{% for i in range(99999) %}{% set x = range(99999)|list|sort %}{% endfor %}",
    "comparing in a loop": "{% set x = 'a' * 4000000 %}{% set y = x + 'b' %}{% set z = x + 'c' %}"
    "{% for i in range(99999) %}{{ y == z }}{{ 'cb' in y }}{{ y[1:]|length }}{% endfor %}",
    "recursive macro": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "branching macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "recursive loop": "{% for i in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "text times": "{{ 'a' * 10000000000 }}",
    "number times text": "{{ 10000000000 * 'a' }}",
    "list times": "{{ [0] * 10000000000 }}",
    "doubling by plus": growing("'ab'", "{% set n.x = n.x + n.x %}"),
    "doubling by tilde": growing("'ab'", "{% set n.x = n.x ~ n.x %}"),
    "doubling by join": growing("'ab'", "{% set n.x = [n.x, n.x]|join %}"),
    "doubling by join, the method": growing("'ab'", "{% set n.x = n.x.join([n.x, n.x]) %}"),
    "doubling by replace": growing("'ab'", "{% set n.x = n.x|replace('', n.x) %}"),
    "doubling by replace, the method": growing("'ab'", "{% set n.x = n.x.replace('', n.x) %}"),
    "doubling by block": growing("'ab'", "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}"),
    "nesting lists": growing("['ab']", "{% set n.x = [n.x, n.x] %}"),
    "nesting dicts": growing("1", "{% set n.x = {'a': n.x, 'b': n.x} %}"),
    "nesting by dict()": growing("1", "{% set n.x = dict(a=n.x, b=n.x) %}"),
    "nesting namespaces": growing("1", "{% set n.x = namespace(a=n.x, b=n.x) %}")
    + "{% for i in range(99999) %}{% for i in range(99999) %}{{ n.x }}{% endfor %}{% endfor %}",
    "filling by default": "{% set x = 'a' * 4000000 %}{{ range(99999)|map(attribute='q')|map('default', x)|list }}",
    "constant in a loop": "{% for i in range(99999) %}{% for j in range(99) %}"
    + "x" * 999
    + "{% endfor %}{% endfor %}",
    "wide json": "{{ [[[1]]]|tojson(indent=1000000000) }}",
    "long separators": "{{ range(99999)|list|tojson(separators=['a' * 999999, 'b']) }}",
    "big power": "{{ 9 ** (9 ** 9) }}",
    "big product": growing("10", "{% set n.x = n.x * n.x %}"),
    "rounding": "{{ 1.5|round(1000000000, 'ceil') }}",
    "centring": "{{ 'a'|center(10000000000) }}",
    "padding": "{{ 'a'.ljust(10000000000) }}",
    "tabs": "{{ ('\\t' * 999999).expandtabs(99999) }}",
    "lorem ipsum": "{{ lipsum(1000000) }}",
    "dates": "{{ strftime_now('%999999999d') }}",
    "protocol names": "{{ namespace(__call__=1) }}",
    "protocol names later": "{% set n = namespace() %}{% set n.__call__ = 1 %}",
    "debug": "{% debug %}",
    "syntax": "{% for %}",
    "deep nesting": "{{ " + "(" * 9999 + ")" * 9999 + " }}",
    "long template": "{# " + "x" * 999999 + " #}",
    "unknown": "{{ messages.nothing.at.all }}",
    "divide": "{{ 1 / 0 }}",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_are_one_line_within_seconds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "SECONDS", 1.0)
    began = time.monotonic()
    with pytest.raises(BaseModelError, match=r"chat template cannot be used: .+") as error:
        ChatTemplate(ATTACKS[name], SPECIALS).render(CHAT)
    assert time.monotonic() - began < 5
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages|map(attribute='__class__')|list }}",
        "{{ raise_exception.__globals__ }}",
        "{{ range.__self__ }}{{ namespace.mro }}{{ messages.__len__ }}",
        "{{ cycler }}{{ joiner }}{{ lipsum }}{{ self }}{{ caller }}{{ environment }}{{ context }}",
    ],
)
def test_what_is_hidden_is_undefined(source: str) -> None:
    text = ChatTemplate(source, {}).render(CHAT)
    assert "class" not in text and "function" not in text and " at 0x" not in text


def test_refusal_of_the_template_is_the_requests_fault() -> None:
    with pytest.raises(RequestError, match="roles must alternate") as error:
        ChatTemplate(TEMPLATES["llama2"], SPECIALS).render([{"role": "assistant", "content": "x"}])
    assert error.value.param == "messages"


@pytest.mark.parametrize(
    "messages",
    [[], ["x"], [{"role": "user"}], [{"content": "x"}], [{"role": 3, "content": ""}], [{"role": "", "content": {1}}]],
)
def test_messages_that_are_none_are_refused(messages) -> None:
    for render in (ChatTemplate(CHATML, {}).render, plain_chat):
        with pytest.raises(RequestError, match="messages"):
            render(messages)


def test_messages_too_long_are_refused_with_both_numbers() -> None:
    with pytest.raises(RequestError, match=r"messages have 10000\d+ characters; the limit is 4194304"):
        ChatTemplate(CHATML, {}).render([{"role": "user", "content": "a" * 10_000_000}])


def test_ordinary_long_chats_pass() -> None:
    messages = [{"role": "user", "content": "word " * 5000}, {"role": "assistant", "content": "yes"}] * 50
    assert len(ChatTemplate(CHATML, {}).render(messages)) > 1_000_000


def test_threads_render_at_the_same_time() -> None:
    from concurrent.futures import ThreadPoolExecutor

    template = ChatTemplate(CHATML, {})
    chats = [[{"role": "user", "content": str(i)}] for i in range(200)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(template.render, chats)) == [template.render(chat) for chat in chats]


def test_models_without_a_template_get_the_plain_form() -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert plain_chat(chat) == "System: Be brief.\n\nUser: Hi\n\nAssistant:"
    assert plain_chat(chat, add_generation_prompt=False) == "System: Be brief.\n\nUser: Hi"


def test_every_failure_is_a_users_error() -> None:
    assert issubclass(BaseModelError, PandoError) and issubclass(RequestError, PandoError)
