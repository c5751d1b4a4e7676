"""The fast way gives the tokens and spans of the exact way, for real and hand-written templates, and what transformers gives."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latxa_megatron.data.chat import Tokens, encode_conversation
from latxa_megatron.data.conversations import Conversation, ConversationEncoder
from latxa_megatron.data.tokenizer import Tokenizer
from latxa_megatron.errors import LatxaError
from tests.data.writers import CHATML, write_tokenizer

PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
TURN = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"


def each(turn: str, prompt: str = PROMPT) -> str:
    return "{% for m in messages %}" + turn + "{% endfor %}" + prompt


FAST = {
    "ChatML": CHATML,
    "strips all": each("{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + '<|im_end|>' }}"),
    "strips some, and writes text after it": each(
        "{{ '<|im_start|>' ~ m.role ~ '\n' }}{% if m.role == 'user' %}{{ m.content.lstrip() ~ '\n\n<|im_end|>' }}"
        "{% else %}{{ m.content ~ ' .<|im_end|>\n' }}{% endif %}"
    ),
    "numbers the turns": each(
        "{{ '<|im_start|>' + m['role'] + ('' if m['role'] == 'assistant' else loop.index | string) + '\n' + m['content'] }}"
        "{{ '<|im_end|>' }}"
    ),
    "writes a header only over what is not empty": each("{% if m.content %}" + TURN + "{% endif %}"),
    "gives a system text where there is none": (
        "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nEuskaraz.<|im_end|>' }}{% endif %}" + each(TURN)
    ),
}

EXACT = {
    "looks at what is said": each(
        "{% if '</think>' in m.content %}{{ '<|im_start|>' + m.role + '\n' + m.content.split('</think>')[-1] + '<|im_end|>' }}"
        "{% else %}" + TURN + "{% endif %}"
    ),
    "looks at its length": each("{% if m.content | length > 9 %}" + TURN + "{% else %}{{ m.content }}<|im_end|>{% endif %}"),
    "strips only line ends": each("{{ '<|im_start|>' + m['role'] + '\n' + m['content'].strip('\n') + '<|im_end|>' }}"),
    "has no control token before an answer": each(
        "{{ m['role'] + ': ' + m['content'] + ('<|im_end|>' if m['role'] == 'assistant' else '\n') }}",
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
    ),
    "repeats the question": each(TURN + "{% if m.role == 'user' %}{{ '<|im_start|>' + m.content + '<|im_end|>' }}{% endif %}"),
    "writes half a control token before a content": each("{{ '<|im_start|>' + m.role + '<|' + m.content + '<|im_end|>' }}", ""),
}

FRAGMENTS = st.sampled_from(
    [
        *("<|im_end|>", "<|im_start|>assistant\n", "<|eot_id|>", "<|start_header_id|>", "<|begin_of_text|>", "<|endoftext|>"),
        *("<|", "|>", "im_end|>", "\ue000", "\U000f0000", " ", "\n", "\n\n", "\u00a0", "\u2003", "</think>", "<think>\n"),
        *("👩‍👩‍👧‍👦", "ñ", "日本", "Kaixo, ", " etxea", "12345", "\x01", "{{ x }}", "'\\n\""),
    ]
)
CONTENTS = st.lists(FRAGMENTS | st.text(max_size=6), max_size=6).map("".join)


@st.composite
def conversations(draw):
    """Valid orders of roles, with tool turns; now and then an answer that says nothing, which is refused."""
    roles = draw(st.sampled_from([[], ["system"]]))
    for turn in draw(st.lists(st.sampled_from([[], ["tool"], ["tool", "ipython"]]), min_size=1, max_size=2)):
        roles = [*roles, "user", "assistant", *turn, *(["assistant"] if turn else [])]
    roles = roles + draw(st.sampled_from([[], [], ["user"]]))
    return [{"role": role, "content": draw(CONTENTS)} for role in roles]


BATCHES = st.lists(conversations(), max_size=4)


def encoder_of(tokenizer, **how):
    """An encoder that learns at once and checks nothing later: what it learns at first is all that makes it right."""
    return ConversationEncoder(tokenizer, **{"after": 0, "compared": 0, "every": 1 << 60, **how})


def exactly(tokenizer, messages, place):
    try:
        return encode_conversation(tokenizer, messages, place), None
    except LatxaError as error:
        return Tokens([], []), error


def check(encoder, batch):
    """The batch's tokens, spans and refusals are those of the exact way, conversation by conversation."""
    refused: dict[int, LatxaError] = {}
    found = encoder.encode([Conversation(messages, f"f:{i}") for i, messages in enumerate(batch)], refused)
    assert len(found) == len(batch)
    for i, messages in enumerate(batch):
        ids, spans = found[i]
        expected, error = exactly(encoder._tokenizer, messages, f"f:{i}")
        assert str(refused.pop(i, None)) == str(error)
        assert ids.tolist() == expected.ids
        assert list(map(tuple, spans.tolist())) == expected.spans
    assert not refused


@pytest.fixture(scope="module")
def encoder(request):
    """The encoder of a real tokenizer under a policy for control tokens, made once."""
    made = {}

    def make(name, policy):
        if (name, policy) not in made:
            tokenizer = Tokenizer(request.getfixturevalue(f"{name}_tokenizer"), policy)
            assert tokenizer.accelerate([]).startswith("fastokens")
            made[name, policy] = encoder_of(tokenizer)
        return made[name, policy]

    return make


REAL = [("llama", "text"), ("llama", "encode"), ("smollm", "text"), ("smollm", "encode"), ("smollm", "error")]


@pytest.fixture(scope="module", params=REAL, ids="-".join)
def real(request, encoder):
    return encoder(*request.param)


@settings(max_examples=60, deadline=None)
@given(batch=BATCHES)
def test_real_templates(batch, real):
    check(real, batch)


def test_real_templates_go_the_fast_way(real):
    roles = ("system", "user", "assistant", "tool", "assistant", "user", "assistant", "user")
    before = real.fast
    check(real, [[{"role": role, "content": f" {role} \n"} for role in roles[:n]] for n in (3, 5, 7, 8)])
    assert real.fast == before + 4


@pytest.fixture(scope="module", params=[*FAST, *EXACT])
def written(request, tmp_path_factory):
    template = (FAST | EXACT)[request.param]
    directory = write_tokenizer(tmp_path_factory.mktemp("written"), template=template, begin=request.param == "numbers the turns")
    return request.param in FAST, encoder_of(Tokenizer(directory))


@settings(max_examples=30, deadline=None)
@given(batch=BATCHES)
def test_written_templates(batch, written):
    check(written[1], batch)


def test_a_template_goes_the_fast_way_where_it_can_and_only_there(written):
    fast, encoder = written
    before = encoder.fast, encoder.exact
    check(encoder, [[{"role": role, "content": "Kaixo"} for role in ("user", "assistant", "user", "assistant")]] * 3)
    assert (encoder.fast - before[0], encoder.exact - before[1]) == ((3, 0) if fast else (0, 3))


@pytest.mark.parametrize("name", ["llama", "smollm"])
@settings(max_examples=60, deadline=None)
@given(batch=BATCHES)
def test_ids_are_those_of_transformers(batch, name, encoder):
    """transformers' own rendering and tokenization, in which control tokens are taken as such, is an independent reference."""
    ours = encoder(name, "encode")
    transformers_own = ours._tokenizer._tokenizer
    batch = [messages for messages in batch if all(m["content"].strip() for m in messages if m["role"] == "assistant")]
    before = ours.exact
    found = ours.encode([Conversation(messages, "here") for messages in batch])
    assert ours.exact == before
    for i, messages in enumerate(batch):
        assert found[i][0].tolist() == transformers_own.apply_chat_template(messages, tokenize=True, return_dict=False)


def test_the_first_refused_conversation_is_named(smollm):
    good = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    bad = [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]
    with pytest.raises(LatxaError, match=r"^f:3: message 2 is an assistant turn that says nothing"):
        encoder_of(smollm).encode([Conversation(m, f"f:{i + 1}") for i, m in enumerate([good, good, bad, good[:1]])])


def test_a_message_with_more_than_role_and_content_goes_the_exact_way(smollm):
    encoder = encoder_of(smollm)
    check(encoder, [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "name": "Ane"}]])
    assert (encoder.fast, encoder.exact) == (0, 1)


def test_rare_shapes_are_not_learned(smollm):
    encoder = ConversationEncoder(smollm, after=2)
    check(encoder, [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]] * 5)
    assert (encoder.fast, encoder.exact) == (3, 2)


SECRET = each("{% set c %}{{ m.content }}{% endset %}{% if 'gako' in c %}{{ '<|im_start|>' }}{% endif %}" + TURN)
"""Looks at a content in a way that watching it does not show: a set block makes a plain string of it."""


def test_a_template_that_looks_unseen_is_found_among_the_first_conversations(tmp_path):
    encoder = encoder_of(Tokenizer(write_tokenizer(tmp_path / "t", template=SECRET)), compared=9)
    plain = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    looked_at = [{"role": "user", "content": "gako bat"}, {"role": "assistant", "content": "b"}]
    check(encoder, [plain, plain])
    assert encoder.fast == 2
    check(encoder, [plain, looked_at, plain])
    check(encoder, [looked_at, plain])
    assert encoder.exact >= 5


def test_and_later_it_is_an_error(tmp_path):
    encoder = encoder_of(Tokenizer(write_tokenizer(tmp_path / "t", template=SECRET)), compared=1, every=4)
    plain = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    looked_at = [{"role": "user", "content": "gako bat"}, {"role": "assistant", "content": "b"}]
    check(encoder, [plain, plain, plain])
    with pytest.raises(LatxaError, match=r"^f:4: .* in another way than others with the same roles"):
        encoder.encode([Conversation(looked_at, "f:4")])
    exact = ConversationEncoder(encoder._tokenizer, exact=True)
    check(exact, [plain, looked_at] * 3)
    assert (exact.fast, exact.exact) == (0, 6)


def test_no_conversations(smollm):
    found = encoder_of(smollm).encode([])
    assert len(found) == 0
    assert found.ids.size == found.spans.size == 0
