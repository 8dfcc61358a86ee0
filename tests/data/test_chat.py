"""Chat templates: the text is transformers', and a template that misbehaves is stopped."""

import json

import pytest
import tokenizers
import transformers

from jaxft.data.text import chat
from jaxft.data.text.chat import load_chat_template
from jaxft.errors import UserError

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": 'Was heißt <b>"müde"</b>?'},
    {"role": "assistant", "content": "tired"},
    {"role": "user", "content": "And two lines?\n  Yes."},
]
CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ODD = """
{%- if tools is not none %}{{ raise_exception('tools') }}{% endif %}
{{ bos_token }}
{%- set ns = namespace(turns=0) %}
{% for message in messages %}
    {% if message['role'] == 'system' %}{% continue %}{% endif %}
    {% set ns.turns = ns.turns + 1 %}
    {% generation %}{{ message | tojson }}{% endgeneration %}
{% endfor %}
{{ ns.turns }}{{ eos_token }}
"""


def folder_with(path, template):
    """A folder with a tokenizer that transformers loads, and this chat template."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")),
        bos_token="<s>",
        eos_token=tokenizers.AddedToken("</s>"),
        chat_template=template,
    )
    tokenizer.save_pretrained(path)
    return tokenizer


@pytest.mark.parametrize("template", [CHATML, ODD])
def test_the_text_is_transformers(template, tmp_path):
    theirs = folder_with(tmp_path, template)
    ours = load_chat_template(tmp_path)
    for start in (True, False):
        expected = [
            theirs.apply_chat_template(one, tokenize=False, add_generation_prompt=start)
            for one in (CHAT, CHAT[1:2])
        ]
        assert ours.render([CHAT, CHAT[1:2]], add_generation_prompt=start) == expected


def test_the_tools_of_each_conversation_are_written_as_transformers_does(tmp_path):
    template = "{% if tools %}{{ tools | tojson }}{% endif %}{{ messages | tojson }}"
    theirs = folder_with(tmp_path, template)
    tool = {"type": "function", "function": {"name": "née", "parameters": {"type": "object"}}}
    expected = [
        theirs.apply_chat_template(CHAT, tools=tools, tokenize=False) for tools in ([tool], None)
    ]
    assert load_chat_template(tmp_path).render([CHAT, CHAT], [[tool], None]) == expected


def test_a_key_that_is_null_is_not_there(tmp_path):
    """Parquet gives every message the keys of all; Llama 3.1's template asks as this one does."""
    folder_with(
        tmp_path,
        "{% for m in messages %}{% if 'tool_calls' in m %}{{ m.tool_calls | length }} calls"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}",
    )
    chat = [{"role": "user", "content": "hi", "tool_calls": None}]
    call = [{"role": "assistant", "content": None, "tool_calls": [{"name": "look"}]}]
    assert load_chat_template(tmp_path).render([chat, call]) == ["hi", "1 calls"]


def test_the_template_is_in_the_file_or_the_config(tmp_path):
    config = tmp_path / "tokenizer_config.json"
    assert load_chat_template(tmp_path) is None
    config.write_text(json.dumps({"bos_token": "<s>"}))
    assert load_chat_template(tmp_path) is None
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "one"}]
    config.write_text(json.dumps({"chat_template": named, "bos_token": {"content": "<s>"}}))
    assert load_chat_template(tmp_path).text == "one"
    assert load_chat_template(tmp_path).tokens == {"bos_token": "<s>"}
    (tmp_path / "chat_template.jinja").write_text("two")
    assert load_chat_template(tmp_path).text == "two"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
            "second",
        ),
        ("{% for a in range(100000000) %}{% endfor %}", "range"),
        ("{% for a in range(90000) %}{{ 'x' * 90000 }}{% endfor %}", "4,000,000 characters"),
        ("{{ ('x' * 99999 * messages | length * 99999) | length }}", "memory"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% if %}", "TemplateSyntaxError"),
    ],
)
def test_a_template_that_misbehaves_is_stopped(template, said, tmp_path, monkeypatch):
    monkeypatch.setattr(chat, "SECONDS", 2.0)
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError, match=said) as caught:
        load_chat_template(tmp_path).render([CHAT])
    assert str(tmp_path) in str(caught.value)
