"""Conversations: trained are the assistant turns with their end-of-turn tokens, against ids written by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latxa_megatron.data.chat import encode_conversation
from latxa_megatron.data.tokenizer import Tokenizer
from tests.data.conftest import LLAMA_TEMPLATE
from tests.data.writers import BEGIN, TURN_END, TURN_START, byte_ids, write_tokenizer

# SmolLM2: <|im_start|> 1, <|im_end|> 2, "\n" 198
SMOLLM_USER = [1, 4093, 198]
SMOLLM_ASSISTANT = [1, 520, 9531, 198]  # "ass" "istant"
# "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
SMOLLM_SYSTEM_TEXT = [2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182]
SMOLLM_SYSTEM = [1, 9690, 198, *SMOLLM_SYSTEM_TEXT, 2, 198]

# Llama 3.1: <|begin_of_text|> 128000, <|start_header_id|> 128006, <|end_header_id|> 128007, <|eot_id|> 128009,
# "\n\n" 271
LLAMA_USER = [128006, 882, 128007, 271]
LLAMA_ASSISTANT = [128006, 78191, 128007, 271]
# "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
LLAMA_DATES = [38766, 1303, 33025, 2696, 25, 6790, 220, 2366, 18, 198, 15724, 2696, 25, 220, 1627, 10263, 220, 2366, 19]
LLAMA_SYSTEM = [128000, 128006, 9125, 128007, 271, *LLAMA_DATES, 271, 128009]


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """Messages of a conversation that the user begins."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return messages if system is None else [{"role": "system", "content": system}, *messages]


def check(tokenizer: Tokenizer, messages: list[dict[str, str]], *pieces: tuple[list[int], bool]) -> None:
    """The conversation's ids are those of the pieces in order; those of pieces marked True are trained, no others."""
    found = encode_conversation(tokenizer, messages, "here:1")
    assert found.ids == [token for ids, _ in pieces for token in ids]
    trained = [i for start, end in found.spans for i in range(start, end)]
    flags = [flag for ids, flag in pieces for _ in ids]
    assert trained == [i for i, flag in enumerate(flags) if flag]
    assert all(end < start for (_, end), (start, _) in zip(found.spans, found.spans[1:], strict=False))


def test_smollm_one_turn_with_the_templates_own_system_text(smollm):
    check(
        smollm,
        turns("Hello", "Good day."),
        ([*SMOLLM_SYSTEM, *SMOLLM_USER, 19556, 2, 198, *SMOLLM_ASSISTANT], False),
        ([14229, 1194, 30, 2], True),
        ([198], False),
    )


def test_smollm_three_turns_and_a_question_left_open(smollm):
    check(
        smollm,
        turns("Hello", "Hi!", "Yes?", "Yes.", "Good.", "No.", "No?", system="You are a helpful AI"),
        ([1, 9690, 198, 2683, 359, 253, 5356, 5646, 2, 198, *SMOLLM_USER, 19556, 2, 198, *SMOLLM_ASSISTANT], False),
        ([26843, 17, 2], True),
        ([198, *SMOLLM_USER, 10539, 47, 2, 198, *SMOLLM_ASSISTANT], False),
        ([10539, 30, 2], True),
        ([198, *SMOLLM_USER, 14229, 30, 2, 198, *SMOLLM_ASSISTANT], False),
        ([5230, 30, 2], True),
        ([198, *SMOLLM_USER, 5230, 47, 2, 198], False),
    )


def test_smollm_keeps_the_spaces_around_a_content(smollm):
    """A token that begins in the header ("\\n ", 3805) is not trained, one that begins in the content is."""
    check(
        smollm,
        turns(" Hello ", "  Hello  "),
        # " Hello" 38699, " " 216, "  " 256
        ([*SMOLLM_SYSTEM, *SMOLLM_USER, 38699, 216, 2, 198, *SMOLLM_ASSISTANT[:-1], 3805], False),
        ([38699, 256, 2], True),
        ([198], False),
    )


def test_smollm_control_tokens_in_a_content_are_text(smollm):
    end_as_text = [44, 108, 306, 79, 486, 108, 46]  # "<" "|" "im" "_" "end" "|" ">"
    check(
        smollm,
        turns("<|im_end|>", "Hello<|im_end|>"),
        ([*SMOLLM_SYSTEM, *SMOLLM_USER, *end_as_text, 2, 198, *SMOLLM_ASSISTANT], False),
        ([19556, *end_as_text, 2], True),
        ([198], False),
    )


def test_control_tokens_in_a_content_are_control_tokens_on_request(byte_tokenizer):
    """They end no turn: the answer goes on to the end of turn that the template writes."""
    check(
        Tokenizer(byte_tokenizer, "encode"),
        turns("a<|im_end|>", "b<|im_end|>\nc"),
        ([TURN_START, *byte_ids("user\na"), TURN_END, TURN_END, *byte_ids("\n")], False),
        ([TURN_START, *byte_ids("assistant\n")], False),
        ([*byte_ids("b"), TURN_END, *byte_ids("\nc"), TURN_END], True),
        (byte_ids("\n"), False),
    )


def test_llama_one_turn_and_one_bos(llama):
    check(
        llama,
        turns("Hello", "Hi there!"),
        ([*LLAMA_SYSTEM, *LLAMA_USER, 9906, 128009, *LLAMA_ASSISTANT], False),
        ([13347, 1070, 0, 128009], True),
    )


def test_llama_three_turns_with_a_system_text(llama):
    check(
        llama,
        turns("Hello", "Hi!", "Yes?", "Yes.", "Kaixo", "Hello", system=" Hello\n"),
        ([*LLAMA_SYSTEM[:-1], 9906, 128009, *LLAMA_USER, 9906, 128009, *LLAMA_ASSISTANT], False),
        ([13347, 0, 128009], True),
        ([*LLAMA_USER, 9642, 30, 128009, *LLAMA_ASSISTANT], False),
        ([9642, 13, 128009], True),
        ([*LLAMA_USER, 84068, 52462, 128009, *LLAMA_ASSISTANT], False),  # "Ka" "ixo"
        ([9906, 128009], True),
    )


def test_llama_strips_the_spaces_around_a_content(llama):
    check(
        llama,
        turns("  Hello \n", "\n\n Hi there!  "),
        ([*LLAMA_SYSTEM, *LLAMA_USER, 9906, 128009, *LLAMA_ASSISTANT], False),
        ([13347, 1070, 0, 128009], True),
    )


@pytest.mark.parametrize("content", ["<|eot_id|>", "Hi<|eot_id|><|start_header_id|>user", "a<|begin_of_text|>b", "<|<|eom_id|>"])
def test_llama_control_tokens_in_a_content_are_text(content, llama, llama_reference):
    as_text = llama_reference.encode(content, disallowed_special=())
    assert max(as_text) < 128000
    check(
        llama,
        turns(content, content),
        ([*LLAMA_SYSTEM, *LLAMA_USER, *as_text, 128009, *LLAMA_ASSISTANT], False),
        ([*as_text, 128009], True),
    )


def test_what_is_rendered_is_what_the_model_sees_at_inference(llama, smollm, llama_tokenizer, smollm_tokenizer):
    """Where no content spells a control token, transformers' own rendering has the same ids."""
    import transformers

    messages = turns("Nor zara zu?", "Laguntzailea naiz.\n\n- bat\n- bi", "Eta 1936an?", "Ez.", system="Euskaraz.")
    for tokenizer, directory in ((llama, llama_tokenizer), (smollm, smollm_tokenizer)):
        reference = transformers.AutoTokenizer.from_pretrained(str(directory))
        text = reference.apply_chat_template(messages, tokenize=False)
        expected = reference(text, add_special_tokens=False)["input_ids"]
        assert encode_conversation(tokenizer, messages, "here:1").ids == expected


@pytest.fixture(scope="module")
def plain(byte_tokenizer):
    return Tokenizer(byte_tokenizer)


@pytest.fixture(scope="module")
def with_bos(tmp_path_factory):
    """Llama's way: the template strips contents and begins with BOS."""
    template = (
        "{{ bos_token }}{% for m in messages %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    return Tokenizer(write_tokenizer(tmp_path_factory.mktemp("bos"), template=template, begin=True))


FRAGMENTS = st.sampled_from(["<|im_end|>", "<|im_start|>assistant\n", "<|endoftext|>", "<|", "|>", "\ue000", " ", "\n"])
CONTENTS = st.lists(FRAGMENTS | st.text(max_size=8), max_size=6).map("".join).filter(str.strip)
CONVERSATIONS = st.tuples(st.none() | CONTENTS, st.lists(CONTENTS, min_size=2, max_size=7))


@settings(max_examples=150)
@given(conversation=CONVERSATIONS)
def test_any_conversation_in_chatml(conversation, plain):
    system, contents = conversation
    messages = turns(*contents, system=system)
    pieces = []
    for message in messages:
        pieces.append(([TURN_START, *byte_ids(message["role"] + "\n")], False))
        pieces.append(([*byte_ids(message["content"]), TURN_END], message["role"] == "assistant"))
        pieces.append((byte_ids("\n"), False))
    check(plain, messages, *pieces)


@settings(max_examples=150)
@given(conversation=CONVERSATIONS)
def test_any_conversation_in_a_template_that_strips_and_begins_with_bos(conversation, with_bos):
    system, contents = conversation
    messages = turns(*contents, system=system)
    pieces = [([BEGIN], False)]
    for message in messages:
        pieces.append(([TURN_START, *byte_ids(message["role"] + "\n")], False))
        pieces.append(([*byte_ids(message["content"].strip()), TURN_END], message["role"] == "assistant"))
    check(with_bos, messages, *pieces)


@pytest.fixture(scope="module")
def without_headers(tmp_path_factory):
    """Vicuna's way: one control token, after an answer; the question and the answer's header are one stretch of text."""
    template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + ('<|im_end|>' if m['role'] == 'assistant' else '\n') }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    return Tokenizer(write_tokenizer(tmp_path_factory.mktemp("plain"), template=template))


@settings(max_examples=150)
@given(conversation=CONVERSATIONS)
def test_any_conversation_in_a_template_with_no_control_token_before_an_answer(conversation, without_headers):
    system, contents = conversation
    messages = turns(*contents, system=system)
    pieces = []
    for message in messages:
        answer = message["role"] == "assistant"
        pieces.append((byte_ids(message["role"] + ": "), False))
        pieces.append(([*byte_ids(message["content"]), TURN_END if answer else byte_ids("\n")[0]], answer))
    check(without_headers, messages, *pieces)


def test_bos_is_added_where_the_template_has_none(tmp_path):
    tokenizer = Tokenizer(write_tokenizer(tmp_path / "t", begin=True))
    check(
        tokenizer,
        turns("a", "b"),
        ([BEGIN, TURN_START, *byte_ids("user\na"), TURN_END, *byte_ids("\n")], False),
        ([TURN_START, *byte_ids("assistant\n")], False),
        ([*byte_ids("b"), TURN_END], True),
        (byte_ids("\n"), False),
    )


def test_the_hand_written_llama_template_is_the_one_in_use(llama):
    assert llama.chat_template == LLAMA_TEMPLATE
