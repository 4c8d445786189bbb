"""Chat templates: what real ones need works as in plain Jinja2, and hostile ones neither reach Python nor run for long."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from jinja2 import Environment, TemplateRuntimeError

from vlm_edge.core import chat, sandbox
from vlm_edge.core.chat import ChatTemplate
from vlm_edge.errors import DamagedBundle

CPU_SECONDS = 5.0
Message = dict[str, Any]
IMAGE_AND_TEXT: list[Message] = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what <b>is</b> {{ this }}?"}]}
]
DIALOGUE: list[Message] = [
    {"role": "system", "content": "Be brief."},
    *IMAGE_AND_TEXT,
    {"role": "assistant", "content": [{"type": "text", "text": "  a page  "}]},
    {"role": "user", "content": "and é?"},
]


def render(template: str, messages: list[Message] | None = None, **config: Any) -> str:
    return ChatTemplate(template, config).render(IMAGE_AND_TEXT if messages is None else messages)


def refusal(template: str) -> DamagedBundle:
    """The error of a template that must fail, and soon."""
    started = time.process_time()
    with pytest.raises(DamagedBundle) as caught:
        render(template)
    assert time.process_time() - started < CPU_SECONDS
    assert caught.value.remedy
    return caught.value


# Written for this test; each uses what the templates of one family or another use.
PLAIN_TEMPLATES = [
    "{% for m in messages %}{{ m.role | upper }}: {% for p in m.content %}"
    "{{ p.text | default('<image>') }}{% endfor %}\n{% endfor %}",
    "{% for m in messages %}{% if loop.first %}<s>{% endif %}{{ m['role'].upper() + ': ' }}"
    "{% for p in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for p in m['content'] | rejectattr('type', 'eq', 'image') %}{{ p['text'] + ' ' }}{% endfor %}{% endfor %}",
    "{% set ns = namespace(n=0, seen=false) %}{% for m in messages %}{% for p in m.content if 'text' not in p %}"
    "{% set ns.n = ns.n + 1 %}{% set ns.seen = true %}Picture {{ ns.n }}{% endfor %}{% endfor %}{{ ns.seen }}",
    "{%- if messages[0].role == 'system' -%}\n  {%- set rest = messages[1:] -%}\n{%- else -%}\n  {%- set rest = messages -%}\n"
    "{%- endif -%}\n{%- for m in rest -%}\n  {{- '<|' ~ m.role ~ '|>\n' -}}\n{%- endfor -%}",
    "{% macro part(p) %}[{{ p.type }}:{{ p.get('text', '')|trim }}]{% endmacro %}"
    "{% for m in messages %}{% for p in m.content %}{{ part(p) }}{{ '' if loop.last else ', ' }}{% endfor %}{% endfor %}",
    "{% for i in range(3) %}{{ i * 2 + 1 - i % 2 }},{{ loop.index }}/{{ loop.length }} {% endfor %}",
    "{{ messages | map(attribute='role') | join(', ') }} {{ messages | length }} {{ (messages | last).role }}",
    "{% set text %}{% for m in messages %}{{ m.role }}{% endfor %}{% endset %}{{ text | replace('us', 'US') | title }}",
    "{{ [1, 2] + [3] }} {{ {'a': (1, none)} }} {{ 'ab'[0] }} {{ 'abc'[1:] }} {{ -1 }} {{ 7 % 4 }}",
    "{{ 'a.b'.split('.') | list }} {{ ' x '.strip() }} {{ 'abc'.startswith('ab') }} {{ missing is defined }} {{ 1 < 2 < 3 }}",
    "{% with a = 1, b = 'x' %}{{ a }}{{ b }}{% endwith %}{% for k, v in messages[0].items() %}{{ k }}{% endfor %}",
]


@pytest.mark.parametrize("messages", [IMAGE_AND_TEXT, DIALOGUE[1:3]])
@pytest.mark.parametrize("template", PLAIN_TEMPLATES)
def test_what_templates_use_comes_out_as_in_plain_jinja(template: str, messages: list[Message]) -> None:
    plain = Environment(trim_blocks=True, lstrip_blocks=True)
    expected = plain.from_string(template).render(messages=messages, add_generation_prompt=True)
    assert render(template, messages) == expected


def test_the_prompt_is_asked_for_and_tokens_are_given() -> None:
    text = render(
        "{{ bos_token }}{% if add_generation_prompt %}ASSISTANT:{% endif %}{{ eos_token }}",
        bos_token="<s>",
        eos_token={"content": "</s>", "lstrip": False},
    )
    assert text == "<s>ASSISTANT:</s>"
    assert render("[{{ bos_token }}]", bos_token=None) == "[]"


def test_what_transformers_adds_to_jinja_is_there() -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{% generation %}{{ m.role }}{% endgeneration %}{% break %}{% endfor %}{{ messages[0] | tojson }}"
    )
    assert render(template, DIALOGUE) == 'user{"role": "system", "content": "Be brief."}'
    assert render("{{ {'é': '<b>'} | tojson(indent=1) }}") == '{\n "é": "<b>"\n}'


def test_text_of_the_user_is_data_and_no_template() -> None:
    assert render("{{ messages[0].content[1].text }}") == "what <b>is</b> {{ this }}?"


def test_a_template_is_compiled_once_and_renders_again_and_again() -> None:
    template = ChatTemplate("{% for i in range(999) %}{{ messages[0].role[0] }}{% endfor %}", {})
    assert {template.render(IMAGE_AND_TEXT) for _ in range(20)} == {"u" * 999}


REACHING = [
    "{{ ''.__class__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ messages['__class__'] }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ lipsum.__globals__ }}",
    "{{ joiner() }}",
    "{{ self.__init__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ raise_exception.__globals__ }}",
    "{{ range.__globals__ }}",
    "{{ namespace.__init__ }}",
    "{{ namespace().__class__ }}",
    "{{ ''|attr('__class__') }}",
    "{{ ['']|map('attr', '__class__')|list }}",
    "{{ ['']|map(attribute='__class__')|list }}",
    "{{ ['']|map(attribute='__class__.__mro__')|join }}",
    "{{ ['']|selectattr('__class__')|list }}",
    "{{ messages|groupby('__class__') }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ '{a.__class__}'.format_map({'a': ''}) }}",
    "{{ '%s'|format('') }}",
    "{{ '%(a)s' % {'a': 1} }}",
    "{% for x in messages %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{% for x in messages %}{{ loop._iterator }}{% endfor %}",
    "{% macro m() %}{% endmacro %}{{ m.__init__ }}",
    "{% macro m() %}{% endmacro %}{{ m._func }}",
    "{{ ().__class__.__bases__ }}",
    "{{ (1).__class__ }}",
    "{{ none.__class__ }}",
    "{{ missing.__class__ }}",
    "{{ missing.method() }}",
    "{{ range }}",
    "{{ namespace() }}",
    "{{ messages[0].items }}",
    "{{ messages|map('upper') }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(a=1) }}",
    "{{ messages[0].clear() }}",
    "{{ ''.encode() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% from 'os' import system %}",
    "{% extends 'x' %}",
    "{% block a %}{% endblock %}",
    "{% call x() %}{% endcall %}",
    "{% filter upper %}x{% endfilter %}",
    "{% autoescape true %}x{% endautoescape %}",
    "{% trans %}x{% endtrans %}",
    "{% do 1 %}",
    "{% debug %}",
]


@pytest.mark.parametrize("template", REACHING)
def test_python_is_out_of_reach(template: str) -> None:
    refusal(template)


def test_the_messages_stay_as_they_were() -> None:
    messages = [dict(DIALOGUE[0])]
    with pytest.raises(DamagedBundle):
        render("{{ messages[0].pop('role') }}", messages)
    with pytest.raises(DamagedBundle):
        render("{% set messages[0].role = 'x' %}", messages)
    assert messages == [DIALOGUE[0]]


def growing(change: str, start: str = "'xx'") -> str:
    """Repeats a change of `ns.s` a hundred times."""
    head = f"{{% set ns = namespace(s={start}) %}}{{% for i in range(100) %}}"
    return f"{head}{{% set ns.s = {change} %}}{{% endfor %}}{{{{ ns.s }}}}"


LOOP = "{% for x in range(99999) %}"
ENDLESS = [
    "{% for i in range(10000000000) %}{% endfor %}",
    "{{ range(100001) | list }}",
    f"{LOOP}{LOOP}{{% endfor %}}{{% endfor %}}",
    f"{LOOP}{LOOP}{{% set a = 1 %}}{{% endfor %}}{{% endfor %}}",
    f"{LOOP}{{% for c in range(99999) if false %}}{{% endfor %}}{{% endfor %}}",
    "{% for a in 'xxxxxxxxxx' %}" * 12 + "{% endfor %}" * 12,
    LOOP + "x" * 60_000 + "{% endfor %}",
    "{% set s %}" + LOOP + "x" * 60_000 + "{% endfor %}{% endset %}",
    "{% macro m() %}" + "x" * 60_000 + "{% endmacro %}" + LOOP + "{% set t = m() %}{% endfor %}",
    "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% macro m(n) %}{% if n %}{% set a = m(n - 1) ~ m(n - 1) %}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% for x in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "{{ 'x' * 1000000000 }}",
    "{{ 1000000000 * 'x' }}",
    "{{ [1] * 1000000000 }}",
    "{{ 10 ** 10 ** 10 }}",
    "{{ 2 ** 2 }}",
    growing("ns.s ~ ns.s"),
    growing("ns.s + ns.s"),
    growing("ns.s.replace('x', ns.s)"),
    growing("ns.s | replace('', ns.s)"),
    growing("ns.s.replace('', ns.s)"),
    growing("ns.s.join(ns.s | list)"),
    growing("ns.s | list | join(ns.s)"),
    growing("[ns.s, ns.s]", "[1]"),
    growing("(ns.s, ns.s)", "[1]"),
    growing("{'a': ns.s, 'b': ns.s}", "[1]"),
    growing("ns.s + ns.s", "[1]"),
    growing("ns.s + ns.s", "1"),
    growing("ns.s * ns.s", "3"),
    growing("ns.s | tojson | tojson"),
    growing("[ns, ns]"),
    "{{ 'x' | center(1000000000) }}",
    "{{ 'x'.center(1000000000) }}",
    "{{ 'x'.ljust(1000000000) }}",
    "{{ '7'.zfill(1000000000) }}",
    "{{ '\t'.expandtabs(1000000000) }}",
    "{{ 'x' | indent(1000000000) }}",
    "{{ [1] | batch(1000000000, 0) | list }}",
    "{{ [1] | slice(1000000000) | list }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ (1).to_bytes(1000000000, 'big') }}",
    "{{ 1 | round(1000000000) }}",
    "{{ lipsum(n=1000000) }}",
    LOOP + "{{ 'x' }}" * 20 + "{% endfor %}",
]


@pytest.mark.parametrize("template", ENDLESS, ids=lambda text: text[:60].replace("\n", " "))
def test_templates_that_would_not_end_or_fill_memory_are_stopped(template: str) -> None:
    refusal(template)


def test_an_indent_of_json_is_small() -> None:
    assert len(render("{{ [[[1]]] | tojson(indent=1000000000) }}")) < 200


def test_large_operands_cost_more_steps() -> None:
    """A loop that compares, searches or hashes a large value takes no longer than one with a small value."""
    setup = "{% set ns = namespace(s='xy') %}{% for i in range(17) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"
    for work in (
        "ns.s == ns.s ~ ''",
        "'yx' ~ 'xx' in ns.s",
        "ns.s.count('z')",
        "ns.s | trim",
        "{ns.s: 1}[ns.s]",
        "ns.s[1:]",
    ):
        refusal(setup + LOOP + "{% set a = " + work + " %}{% endfor %}")


BROKEN = [
    "{{", "{% for %}", "{% if %}", "{% endfor %}", "{{ 1 | nofilter }}", "{{ 1 is notest }}", "{{ missing + 1 }}", "{{ 1 / 0 }}",
    "{{ messages[5].role }}", "{{ 'a' < 1 }}", "{{ raise_exception('only one image') }}", "{{ none() }}", "{% break %}",
    "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}", "{{ " + "-" * 20_000 + "1 }}", "{{ " + "not " * 10_000 + "1 }}",
    "{{ " + "[" * 20_000 + " }}", "{{ " + "1+" * 20_000 + "1 }}", "{{ a" + ".b" * 20_000 + " }}", "{{ " + "9" * 5000 + " }}",
    "{% for a in [1] %}" * 30 + "{% endfor %}" * 30, "{% if 1 %}" * 150 + "{% endif %}" * 150, "{{ 1e99999 }}",
    "{{ '\\ud800' }}", "{% set a, b = 'xyz' %}", "{{ {[]: 1} }}", "{% for x in 5 %}{% endfor %}",
    "x" * (chat.MAX_TEMPLATE_CHARS + 1),
]  # fmt: skip


@pytest.mark.parametrize("template", BROKEN, ids=lambda text: text[:40])
def test_templates_that_do_not_compile_or_fail_are_damaged(template: str) -> None:
    refusal(template)


def test_what_a_template_says_when_it_refuses_is_passed_on() -> None:
    assert "only one image" in refusal("{{ raise_exception('only one image') }}").message


def test_the_longest_prompt_and_one_character_more() -> None:
    limit = chat.MAX_PROMPT_CHARS
    messages = [{"role": "user", "content": "x" * limit}]
    assert len(render("{{ messages[0].content }}", messages)) == limit
    with pytest.raises(DamagedBundle, match="endless"):
        render("{{ messages[0].content }}.", messages)


def test_a_long_conversation_is_no_attack() -> None:
    messages = DIALOGUE[1:3] * 400
    assert render(PLAIN_TEMPLATES[1], messages).count("<image>") == 400


def test_values_of_plain_kinds_have_a_size_and_others_none() -> None:
    assert sandbox.size("abc") == 3
    assert sandbox.size(["ab", {"c": 1.5, "d": (None, True)}]) == 2 * 16 + 2 + 2 * 16 + 2 + 2 * 16
    with pytest.raises(TemplateRuntimeError, match="object"):
        sandbox.size([object()])


FRAGMENTS = [
    "{{ ", " }}", "{% ", " %}", "for x in ", "endfor", "if ", "endif", "set a = ", "else", "messages", "loop", ".role", "[0]",
    "|list", "|join", "|tojson", "|map(attribute='a')", "|upper", "(", ")", "[", "]", "{", "}", "'", "x", "1", "99999", "+", "~",
    "*", "%", "**", "-", "__class__", ".", ",", ":", "==", "in ", "is ", "not ", "defined", "range", "namespace", "macro m()",
    "endmacro", "m()", "\n", "{#", "#}", "recursive", "continue", "break", "generation", "endgeneration", "\0", "é",
]  # fmt: skip


def test_random_templates_give_text_or_are_damaged() -> None:
    rng = random.Random(7)
    rendered = 0
    started = time.process_time()
    for _ in range(800):
        inner = "".join(rng.choice(FRAGMENTS) for _ in range(rng.randrange(1, 9)))
        template = (
            rng.choice(("{{ %s }}", "{%% for x in messages %%}{{ %s }}{%% endfor %%}", "%s", "{%% %s %%}")) % inner
        )
        try:
            text = render(template)
        except DamagedBundle:
            continue
        rendered += 1
        assert len(text) <= chat.MAX_PROMPT_CHARS
    assert time.process_time() - started < 30
    assert rendered > 20
