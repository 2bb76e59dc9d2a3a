"""Encoding of prompts: special tokens, and chat templates of all sorts, which work or are refused in one sentence."""

import argparse

import pytest

from quantharm.common import chat
from quantharm.common.chat import Asking, encode_prompt, knows_thinking
from quantharm.common.errors import UserError

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_chat_template_with_generation_prompt_and_one_bos(byte_tokenizer):
    tokenizer = byte_tokenizer(bos=True, template=TEMPLATE)
    ids = encode_prompt(tokenizer, "Hi")
    assert tokenizer.decode(ids) == "<s>[user]Hi[assistant]"
    assert ids.count(0) == 1
    # Tokenized as any text, a second BOS would be put before the template's own.
    assert tokenizer(tokenizer.decode(ids))["input_ids"].count(0) == 2


def test_without_a_template_the_bare_text_with_the_tokenizers_special_tokens(byte_tokenizer):
    tokenizer = byte_tokenizer(bos=True)
    assert encode_prompt(tokenizer, "Hi") == tokenizer("Hi")["input_ids"]
    assert encode_prompt(tokenizer, "Hi")[0] == 0
    assert encode_prompt(byte_tokenizer(), "Hi") == byte_tokenizer()("Hi")["input_ids"]


def test_never_ignores_a_template(byte_tokenizer):
    tokenizer = byte_tokenizer(bos=True, template=TEMPLATE)
    assert tokenizer.decode(encode_prompt(tokenizer, "Hi", Asking("never"))) == "<s>Hi"


def test_required_raises_without_a_template_and_uses_one(byte_tokenizer):
    with pytest.raises(UserError, match=r"the tokenizer has no chat template; use auto or never"):
        encode_prompt(byte_tokenizer(), "Hi", Asking("required"))
    tokenizer = byte_tokenizer(template=TEMPLATE)
    assert encode_prompt(tokenizer, "Hi", Asking("required")) == encode_prompt(tokenizer, "Hi")


def test_the_built_in_model_has_no_template_so_its_prompts_begin_with_one_bos(reference_tokenizer, suite):
    for prompt in suite[:5]:
        ids = encode_prompt(reference_tokenizer, prompt["prompt"])
        assert (ids[0], ids.count(0)) == (0, 1)
        assert reference_tokenizer.decode(ids[1:]) == prompt["prompt"]


# ---------------------------------------------------------------- templates of all sorts

MESSAGES = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
SYSTEM_WANTED = (
    "{% if messages[0].role != 'system' %}{{ raise_exception('a system prompt is wanted') }}{% endif %}" + MESSAGES
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + MESSAGES
PARTS = "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}"
PARTS += "{% endfor %}{% endfor %}[assistant]"
STRICT_PARTS = PARTS.replace("{% for m in messages %}", "{% for m in messages %}{{ m.content[0]['text'] + '' and '' }}")
DATED = "{{ strftime_now('%d %b %Y') }}|" + MESSAGES
THINKING = MESSAGES + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
GRANITE = MESSAGES + "{% if thinking %}<think>{% endif %}"


@pytest.mark.parametrize(
    ("template", "asking", "text"),
    [
        (PARTS, Asking(), "[user]Hi[assistant]"),
        (STRICT_PARTS, Asking(), "[user]Hi[assistant]"),
        (PARTS, Asking(system_prompt="Be kind"), "[system]Be kind[user]Hi[assistant]"),
        (MESSAGES, Asking(system_prompt="Be kind"), "[system]Be kind[user]Hi[assistant]"),
        (SYSTEM_WANTED, Asking(system_prompt="Be kind"), "[system]Be kind[user]Hi[assistant]"),
        (NO_SYSTEM, Asking(), "[user]Hi[assistant]"),
        ({"default": MESSAGES, "tool_use": "x"}, Asking(), "[user]Hi[assistant]"),
        ({"rag": "x", "tool_use": "y"}, Asking("never"), "Hi"),
        ("{% if %}", Asking("never"), "Hi"),
        (DATED, Asking(), "01 Jan 2025|[user]Hi[assistant]"),
        (DATED, Asking(template_date="2031-05-14"), "14 May 2031|[user]Hi[assistant]"),
        (THINKING, Asking(), "[user]Hi[assistant]<think></think>"),
        (THINKING, Asking(thinking=True), "[user]Hi[assistant]"),
        (GRANITE, Asking(thinking=True), "[user]Hi[assistant]<think>"),
        (None, Asking(system_prompt="Be kind"), "Be kind\n\nHi"),
    ],
)
def test_templates_that_work(byte_tokenizer, template, asking, text):
    tokenizer = byte_tokenizer(template=template)
    assert tokenizer.decode(encode_prompt(tokenizer, "Hi", asking)) == text


@pytest.mark.parametrize(
    ("template", "asking", "reason"),
    [
        (SYSTEM_WANTED, Asking(), "a system prompt is wanted"),
        (NO_SYSTEM, Asking(system_prompt="Be kind"), "no system role"),
        ("{{ raise_exception('line one\\nline two') }}", Asking(), "line one line two"),
        ("{% if %}", Asking(), "Expected an expression"),
        ("{% for m in messages %}", Asking(), "Unexpected end of template"),
        ({"rag": MESSAGES, "tool_use": MESSAGES}, Asking(), "multiple chat templates"),
        ("{{ messages[3].content }}", Asking(), "has no element 3"),
        ("{{ messages[0].content.text.none }}", Asking(), "has no attribute"),
        ("{{ ''.__class__.__mro__ }}" + MESSAGES, Asking(), "unsafe"),
        ("Hello.", Asking(), "does not hold the prompt"),
    ],
)
def test_templates_that_cannot_put_a_prompt_are_refused_in_one_sentence(byte_tokenizer, template, asking, reason):
    with pytest.raises(
        UserError, match=r"the tokenizer's chat template cannot put a prompt \(.*chat_template: never"
    ) as e:
        encode_prompt(byte_tokenizer(template=template), "Hi", asking)
    assert reason in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("template", "known"),
    [(THINKING, True), (GRANITE, True), (MESSAGES, False), (MESSAGES + "thinking", False), (None, False)],
)
def test_a_switch_for_thinking_is_known_by_what_it_changes(byte_tokenizer, template, known):
    assert knows_thinking(byte_tokenizer(template=template)) is known
    assert knows_thinking(byte_tokenizer(template=template), Asking("never")) is False


def test_what_was_asked_is_kept_with_a_hash_of_the_ids(byte_tokenizer):
    tokenizer = byte_tokenizer(template=DATED)
    first, later = Asking(), Asking(template_date="2031-05-14")
    records = [chat.asked(tokenizer, a, [encode_prompt(tokenizer, "Hi", a)]) for a in (first, first, later)]
    assert records[0] == records[1]
    assert records[0]["prompt_tokens_sha256"] != records[2]["prompt_tokens_sha256"]
    assert (records[2]["template_date"], records[2]["thinking_switch"]) == ("2031-05-14", False)
    assert Asking.of(records[2]) == later


def test_flags_say_how_to_ask():
    parser = argparse.ArgumentParser()
    chat.add_flags(parser)
    assert Asking.of(parser.parse_args([])) == Asking()
    words = ["--thinking", "--template-date", "2031-05-14", "--system-prompt", "Be kind", "--chat-template", "never"]
    assert Asking.of(parser.parse_args(words)) == Asking("never", True, "2031-05-14", "Be kind")
