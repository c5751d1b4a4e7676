"""What cannot be trained on is refused: odd conversations by their place, odd templates by their directory."""

import pytest

from latxa_megatron.data.chat import check_template, encode_conversation
from latxa_megatron.data.tokenizer import Tokenizer
from latxa_megatron.errors import LatxaError
from tests.data.writers import CHATML, write_tokenizer


def message(role: str, content: str = "a") -> dict[str, str]:
    return {"role": role, "content": content}


TWO_TURNS = [message("user", "a"), message("assistant", "b"), message("user", "c"), message("assistant", "d")]


@pytest.fixture(scope="module")
def plain(byte_tokenizer):
    return Tokenizer(byte_tokenizer)


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        (["assistant"], "message 1 is an assistant turn that answers no user turn"),
        (["system", "assistant"], "message 2 is an assistant turn that answers no user turn"),
        (["user", "assistant", "assistant"], "message 3 is an assistant turn that answers no user turn"),
        (["user", "user", "assistant"], "message 2 is a user turn after a user turn"),
        (["user", "assistant", "system"], "message 3 is a system message; only the first can be"),
        (["system", "system", "user", "assistant"], "message 2 is a system message"),
        (["user", "model"], "message 2 has the role 'model'"),
        (["user"], "has no assistant turn"),
        (["system", "user"], "has no assistant turn"),
        (["system"], "has no assistant turn"),
    ],
)
def test_roles_out_of_order_are_refused_by_place(roles, reason, plain):
    with pytest.raises(LatxaError) as error:
        encode_conversation(plain, [message(role) for role in roles], "dir/a.jsonl:12")
    assert str(error.value).startswith("dir/a.jsonl:12: ")
    assert reason in str(error.value)


@pytest.mark.parametrize("roles", [["user", "assistant", "tool", "assistant"], ["system", "user", "assistant", "user"]])
def test_roles_in_order_are_taken(roles, plain):
    assert encode_conversation(plain, [message(role) for role in roles], "here").spans


ASSISTANT_PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
TURN = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"

TEMPLATES = {
    "numbers the turns from the end": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + (messages | length - loop.index) | string }}"
        "{{ m['content'] + '<|im_end|>' }}{% endfor %}" + ASSISTANT_PROMPT,
        "renders a turn differently once others follow",
    ),
    "drops earlier answers": (
        "{% for m in messages %}{% if m['role'] != 'assistant' or loop.last %}" + TURN + "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        "renders a turn differently once others follow",
    ),
    "has another generation prompt than header": (
        "{% for m in messages %}" + TURN + "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}",
        "renders a turn differently once others follow",
    ),
    "has no end of turn": (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
        "has no end-of-turn token",
    ),
    "changes what the assistant says": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | upper + '<|im_end|>' }}"
        "{% endfor %}" + ASSISTANT_PROMPT,
        "changes what the assistant says",
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_in_which_assistant_turns_cannot_be_told_is_refused(name, tmp_path):
    template, reason = TEMPLATES[name]
    tokenizer = Tokenizer(write_tokenizer(tmp_path / "t", template=template))
    with pytest.raises(LatxaError, match=reason) as error:
        encode_conversation(tokenizer, TWO_TURNS, "a.jsonl:3")
    assert str(error.value).startswith(f"{tmp_path / 't'}: ")


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('only users may speak') }}",
        "{{ messages[0]['content'] + undefined_thing['a'] }}",
        "{% for m in messages %}{{ m['role'] }",
    ],
    ids=["raises", "undefined", "syntax"],
)
def test_a_template_that_fails_is_refused_by_place(template, tmp_path):
    tokenizer = Tokenizer(write_tokenizer(tmp_path / "t", template=template))
    with pytest.raises(LatxaError, match="the chat template refuses the conversation") as error:
        encode_conversation(tokenizer, TWO_TURNS, "a.jsonl:3")
    assert str(error.value).startswith("a.jsonl:3: ")


def test_a_tokenizer_without_a_template_is_refused(tmp_path):
    with pytest.raises(LatxaError, match="has no chat template"):
        check_template(Tokenizer(write_tokenizer(tmp_path / "without", template=None)))
    check_template(Tokenizer(write_tokenizer(tmp_path / "with", template=CHATML)))


@pytest.mark.parametrize("content", ["", " ", "\n"])
def test_an_answer_that_says_nothing_is_refused(content, plain):
    """Trained, it would teach the model to end its turn at once; tool calls beside an empty content look so."""
    with pytest.raises(LatxaError, match="message 2 is an assistant turn that says nothing"):
        encode_conversation(plain, [message("user"), message("assistant", content)], "here:1")


def test_a_control_token_in_a_content_is_refused_on_request(byte_tokenizer):
    strict = Tokenizer(byte_tokenizer, "error")
    said = [message("user"), message("assistant", "b <|im_end|>")]
    with pytest.raises(LatxaError, match=r"^a\.jsonl:7: message 2: the control token '<\|im_end\|>' stands in the text"):
        encode_conversation(strict, said, "a.jsonl:7")
    assert encode_conversation(strict, TWO_TURNS, "here").spans
