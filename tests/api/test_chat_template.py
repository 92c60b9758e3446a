"""Chat templates: the model's own, in a sandbox, with what templates expect."""

from __future__ import annotations

import json

import pytest

from raysgl.api.chat_template import ChatTemplate, TemplateError

from .conftest import CHATML

HI = [{"role": "user", "content": "hi"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
LOOPS = "{% for m in messages %}{% for part in m['content'] %}[{{ part.text }}]{% endfor %}{% endfor %}"
EITHER = (
    "{% for m in messages %}{% if m.content is string %}<{{ m.content }}>"
    "{% else %}{% for part in m.content %}[{{ part['text'] }}]{% endfor %}{% endif %}{% endfor %}"
)
MACRO = (
    "{% macro show(content) %}{% if content is string %}<{{ content }}>{% else %}"
    "{% for item in content %}[{{ item.text }}]{% endfor %}{% endif %}{% endmacro %}"
    "{% for m in messages %}{{ show(m.content) }}{% endfor %}"
)


def test_chatml():
    template = ChatTemplate(CHATML)
    assert template.render(HI) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert template.render(HI, add_generation_prompt=False) == "<|im_start|>user\nhi<|im_end|>\n"


@pytest.mark.parametrize(
    ("source", "kind", "string", "parts"),
    [
        ("{{ messages[0].content }}", "string", "hi", "a\nb"),
        ("{% set content = messages[0]['content'] %}{{ content }}", "string", "hi", "a\nb"),
        (LOOPS, "parts", "[hi]", "[a][b]"),
        (EITHER, "either", "<hi>", "[a][b]"),
        (MACRO, "either", "<hi>", "[a][b]"),
        (
            "{% set c = messages[0].content %}{% for p in c|list %}[{{ p.text }}]{% endfor %}",
            "parts",
            "[hi]",
            "[a][b]",
        ),
    ],
)
def test_content_is_what_the_template_expects(source, kind, string, parts):
    template = ChatTemplate(source)
    assert template.content_format == kind
    assert template.render(HI) == string
    assert template.render(PARTS) == parts


def test_helpers():
    source = (
        "{{ tools | tojson }}{{ strftime_now('%Y')|length }}{% generation %}g{% endgeneration %}"
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}{{ bos_token }}{{ x }}"
    )
    template = ChatTemplate(source, {"bos_token": "<s>"})
    assert template.render(HI * 2, tools=[{"n": "é<"}], x=1) == '[{"n": "é<"}]4guser<s>1'
    assert "x" in template.variables
    assert ChatTemplate("{{ {'a': 1} | tojson(indent=2) }}").render(HI) == '{\n  "a": 1\n}'


def test_blocks_are_trimmed():
    assert ChatTemplate("{% if true %}\n  {% if true %}\na\n{% endif %}\n{% endif %}").render(HI) == "a\n"


def test_errors_carry_the_templates_message():
    with pytest.raises(TemplateError, match="roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render(HI)
    with pytest.raises(TemplateError):
        ChatTemplate("{{ messages[0].content + 5 }}").render(HI)
    with pytest.raises(ValueError, match="line 2"):
        ChatTemplate("a\n{% if %}")


@pytest.mark.parametrize(
    "attack", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ cycler.__init__.__globals__ }}"]
)
def test_the_sandbox_holds(attack):
    try:
        shown = ChatTemplate(attack).render(HI)
    except TemplateError:
        return
    assert "class" not in shown
    assert "os" not in shown


def test_messages_are_prepared_not_changed():
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [{"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]}]
    source = (
        "{{ messages[0].tool_calls[0].function.arguments.a }}|{{ messages[0].content }}|{{ messages[0].refusal is defined }}"
    )
    assert ChatTemplate(source).render(messages) == "1||False"
    assert call["function"]["arguments"] == '{"a": 1}'
    broken = [{"role": "assistant", "content": "", "tool_calls": [{"function": {"arguments": "{"}}]}]
    assert ChatTemplate("{{ messages[0].tool_calls[0].function.arguments }}").render(broken) == "{"


def test_developer_is_system_where_the_template_does_not_know_it():
    developer = [{"role": "developer", "content": "x"}]
    assert ChatTemplate("{{ messages[0].role }}").render(developer) == "system"
    assert ChatTemplate("{# developer #}{{ messages[0].role }}").render(developer) == "developer"


@pytest.mark.parametrize("source", [CHATML, LOOPS.replace("[", " ").replace("]", " ").replace("m 'content' ", "m['content']")])
def test_continuing_the_final_message(source):
    messages = [*HI, {"role": "assistant", "content": "Once upon a "}]
    prompt = ChatTemplate(source).render(messages, continue_final_message=True)
    assert prompt.endswith("Once upon a ")
    trimmed = CHATML.replace("message['content']", "message['content'].strip()")
    assert ChatTemplate(trimmed).render(messages, continue_final_message=True).endswith("assistant\nOnce upon a ")
    with pytest.raises(TemplateError, match="final message"):
        ChatTemplate("{{ messages[0].content }}").render(messages, continue_final_message=True)


def test_content_none_and_arguments_are_what_the_template_asks_for():
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": "é"}'}}
    messages = [{"role": "assistant", "tool_calls": [call]}]
    assert ChatTemplate("{{ messages[0].content is none }}{{ messages[0].content }}").render(messages) == "TrueNone"
    assert ChatTemplate("[{{ messages[0].content }}]").render(messages) == "[]"
    as_text = "{% for m in messages %}{% for c in m.tool_calls %}{{ '<' + c['function']['arguments'] }}{% endfor %}{% endfor %}"
    assert ChatTemplate(as_text).render(messages) == '<{"a": "é"}'
    call["function"]["arguments"] = {"a": "é"}
    assert ChatTemplate(as_text).render(messages) == '<{"a": "é"}'
    assert ChatTemplate("{% set x = messages[0].tool_calls[0].function.arguments %}{{ x.a }}{{ x }}").render(messages)[0] == "é"


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_has_several_names(name):
    source = "{{ messages[0].reasoning_content }}|{{ messages[0].thinking }}"
    assert ChatTemplate(source).render([{"role": "assistant", "content": "a", name: "why"}]) == "why|why"


async def test_a_prefix_message_is_continued(server, tokenizer):
    made = server()
    messages = [*HI, {"role": "assistant", "content": "Once", "prefix": True}]
    async with made.client() as client:
        await client.post("/v1/chat/completions", json={"messages": messages})
    assert tokenizer.decode(made.backend.last.input_ids, skip_special_tokens=False).endswith("assistant\nOnce")


async def test_documents_need_a_template_that_reads_them(server, model, tokenizer):
    made, body = server(), {"messages": HI, "documents": [{"text": "Bees buzz"}]}
    async with made.client() as client:
        refused = await client.post("/v1/chat/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "documents")
        model.chat_template = ChatTemplate("{{ documents[0].text }}")
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    assert tokenizer.decode(made.backend.last.input_ids) == "Bees buzz"


async def test_a_thousand_messages(server, tokenizer):
    made = server()
    async with made.client() as client:
        answer = await client.post("/tokenize", json={"messages": HI * 1000})
    assert answer.json()["count"] > 4000


def test_where_a_template_comes_from(tokenizer, tmp_path):
    tokenizer_config = tokenizer.chat_template
    try:
        assert ChatTemplate.load(tmp_path, tokenizer).source == CHATML
        tokenizer.chat_template = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
        several = ChatTemplate.load(tmp_path, tokenizer)
        assert several.render(HI) == "d"
        assert several.render(HI, tools=[{}]) == "t"
        tokenizer.chat_template = None
        assert ChatTemplate.load(tmp_path, tokenizer) is None
        (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
        assert ChatTemplate.load(tmp_path, tokenizer).render(HI) == "json"
        (tmp_path / "chat_template.jinja").write_text("file")
        assert ChatTemplate.load(tmp_path, tokenizer).render(HI) == "file"
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("with tools")
        assert ChatTemplate.load(tmp_path, tokenizer).render(HI, tools=[{}]) == "with tools"
        assert ChatTemplate.load(tmp_path, tokenizer, "tool_use").render(HI) == "with tools"
        (tmp_path / "mine.jinja").write_text("mine")
        assert ChatTemplate.load(tmp_path, tokenizer, tmp_path / "mine.jinja").render(HI) == "mine"
        with pytest.raises(FileNotFoundError):
            ChatTemplate.load(tmp_path, tokenizer, tmp_path / "nowhere.jinja")
        for name, text in {"a.json": "{", "b.json": "{}"}.items():
            (tmp_path / name).write_text(text)
            with pytest.raises(ValueError, match=name):
                ChatTemplate.load(tmp_path, tokenizer, tmp_path / name)
        (tmp_path / "c.json").write_text('{"chat_template": [{"name": "default", "template": "c"}]}')
        assert ChatTemplate.load(tmp_path, tokenizer, tmp_path / "c.json").render(HI) == "c"
    finally:
        tokenizer.chat_template = tokenizer_config
