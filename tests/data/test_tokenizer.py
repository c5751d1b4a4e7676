"""The tokenizer against tiktoken, transformers and bytes counted by hand."""

import itertools
import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latxa_megatron.data.tokenizer import Tokenizer
from latxa_megatron.errors import LatxaError
from tests.data.conftest import LLAMA_CONTROL_TOKENS
from tests.data.writers import BEGIN, DOCUMENT_END, byte_ids, write_tokenizer

TEXTS = [
    "Kaixo, mundua! Euskara hizkuntza isolatua da, eta Euskal Herrian hitz egiten da.",
    "Arrazoiketa: 1936ko uztailaren 18an, 2.347.000 biztanle zeuden (% 12,5 gehiago).",
    "The quick brown fox didn't jump over 12345 lazy dogs; it's 10:30 o'clock.\n\n\tIndented\r\n",
    "ñ ç ü Ü € 日本語 🙂🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "  leading and trailing  ",
    "",
    "\n",
]


def test_llamas_tokens_are_those_that_its_model_knows(llama):
    assert llama.vocab_size == 128256
    assert llama.bos_id == 128000
    assert llama.document_end_id == 128001  # <|end_of_text|>; <|eot_id|> ends a turn
    assert llama.control_tokens == {token: 128000 + i for i, token in enumerate(LLAMA_CONTROL_TOKENS)}
    assert llama.control_tokens["<|eot_id|>"] == 128009


@pytest.mark.parametrize("text", TEXTS)
def test_llamas_ids_are_tiktokens(text, llama, llama_reference):
    expected = llama_reference.encode(text, disallowed_special=())
    assert documents(llama, [text]) == [[128000, *expected, 128001]]
    assert llama.encode_with_offsets(text)[0] == expected


@settings(max_examples=200)
@given(text=st.text(max_size=60))
def test_llamas_ids_are_tiktokens_for_any_text(text, llama, llama_reference):
    assert llama.encode_with_offsets(text)[0] == llama_reference.encode(text, disallowed_special=())


def test_smollm2_puts_nothing_before_a_text_and_endoftext_after_it(smollm):
    assert smollm.vocab_size == 49152
    assert smollm.bos_id is None
    assert documents(smollm, ["Hello"]) == [[19556, 0]]


def test_control_tokens_in_a_text_are_text(llama, smollm, llama_reference, byte_tokenizer):
    text = "a <|eot_id|><|begin_of_text|> b"
    expected = llama_reference.encode(text, disallowed_special=())
    assert max(expected) < 128000
    assert documents(llama, [text]) == [[128000, *expected, 128001]]
    # "<", "|", "im", "_", "end", "|", ">" of SmolLM2's vocabulary
    assert documents(smollm, ["<|im_end|>"]) == [[44, 108, 306, 79, 486, 108, 46, 0]]
    assert documents(Tokenizer(byte_tokenizer), ["<|im_end|>"]) == [[*byte_ids("<|im_end|>"), DOCUMENT_END]]


@pytest.fixture(scope="module")
def policies(smollm_tokenizer):
    made = {policy: Tokenizer(smollm_tokenizer, policy) for policy in ("text", "encode", "error")}
    made["encode, fast"] = Tokenizer(smollm_tokenizer, "encode")
    assert made["encode, fast"].accelerate([]).startswith("fastokens")
    return made


@settings(max_examples=100, deadline=None)
@given(
    pieces=st.lists(st.sampled_from(["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|", " "]) | st.text(max_size=5), max_size=6)
)
def test_control_tokens_in_a_text_are_text_or_themselves_or_refused(pieces, policies):
    """Against the pieces encoded each by itself, which is what a control token between them means."""
    text = "".join(pieces)
    parts = policies["text"].control_pattern.split(text)
    control = policies["text"].control_tokens
    apart = [i for part in parts for i in ([control[part]] if part in control else policies["text"].encode_with_offsets(part)[0])]
    assert documents(policies["encode"], [text]) == documents(policies["encode, fast"], [text]) == [[*apart, 0]]
    assert documents(policies["text"], [text]) == [[*policies["text"].encode_with_offsets(text)[0], 0]]
    assert not set(documents(policies["text"], [text])[0][:-1]) & {*control.values()}
    if len(parts) == 1:
        assert documents(policies["error"], [text]) == [[*apart, 0]]
    else:
        with pytest.raises(LatxaError) as error:
            policies["error"].encode_documents(["a", text], ["f:1", "f:2"])
        assert str(error.value).startswith(f"f:2: the control token '{parts[1]}' stands in the text")


def test_a_refused_text_without_a_place_is_named_by_its_number(policies):
    with pytest.raises(LatxaError, match=r"^text 2: the control token '<\|im_end\|>'"):
        policies["error"].encode_documents(["a", "b<|im_end|>"])


def test_a_policy_that_there_is_not(byte_tokenizer):
    with pytest.raises(LatxaError, match="there is no 'drop'; say text, encode, error"):
        Tokenizer(byte_tokenizer, "drop")


def test_a_policy_leaves_rendered_text_and_the_fingerprint_as_they_are(policies):
    rendered = "<|im_start|>user\na<|im_end|>"
    for tokenizer in policies.values():
        assert tokenizer.encode_rendered(rendered) == [1, 4093, 198, 81, 2]
        assert tokenizer.fingerprint == policies["text"].fingerprint
    assert 2 not in policies["text"].encode_texts([rendered])[0]
    assert 2 in policies["encode"].encode_texts([rendered])[0]


def test_documents_are_encoded_each_by_itself(byte_tokenizer):
    texts = ["bat", "", "ñ🙂", "a" * 1000]
    assert documents(Tokenizer(byte_tokenizer), texts) == [[*byte_ids(t), DOCUMENT_END] for t in texts]


def test_bos_is_what_the_tokenizer_itself_puts_first(tmp_path):
    tokenizer = Tokenizer(write_tokenizer(tmp_path / "t", begin=True))
    assert tokenizer.bos_id == BEGIN
    assert tokenizer.vocab_size == 260
    assert documents(tokenizer, ["a"]) == [[BEGIN, 3 + ord("a"), DOCUMENT_END]]


def documents(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    ids, offsets = tokenizer.encode_documents(texts)
    return [ids[start:end].tolist() for start, end in itertools.pairwise(offsets)]


def edit(directory, change):
    file = directory / "tokenizer.json"
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def test_truncation_and_padding_of_the_file_are_not_applied(byte_tokenizer, tmp_path):
    copy = shutil.copytree(byte_tokenizer, tmp_path / "t")
    padding = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    edit(copy, lambda value: value.update(truncation=truncation, padding=padding))
    assert documents(Tokenizer(copy), ["zortzi", "a"]) == [
        [*byte_ids("zortzi"), DOCUMENT_END],
        [*byte_ids("a"), DOCUMENT_END],
    ]


def test_fingerprint_is_of_what_decides_ids(byte_tokenizer, tmp_path):
    tokenizer = Tokenizer(byte_tokenizer)
    fingerprint = tokenizer.fingerprint
    copy = shutil.copytree(byte_tokenizer, tmp_path / "copy")
    used = Tokenizer(copy)
    used.encode_documents(["a", "b"])
    assert used.fingerprint == fingerprint
    (copy / "chat_template.jinja").write_text("another")  # has a fingerprint of its own in a store
    assert Tokenizer(copy).fingerprint == fingerprint
    edit(copy, lambda value: value["pre_tokenizer"].update(add_prefix_space=True))
    assert Tokenizer(copy).fingerprint != fingerprint
    assert Tokenizer(write_tokenizer(tmp_path / "begin", begin=True)).fingerprint != fingerprint


def test_longest_control_token_wins(tmp_path):
    import tokenizers
    import transformers

    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    backend.add_special_tokens(["<x>", "<x><y>", "</s>"])
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(str(tmp_path))
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.control_pattern.split("a<x><y><x>b") == ["a", "<x><y>", "", "<x>", "b"]


def test_a_directory_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(LatxaError, match="gone: there is no such tokenizer directory"):
        Tokenizer(tmp_path / "gone")
    with pytest.raises(LatxaError, match=r"holds no tokenizer\.json") as error:
        Tokenizer(tmp_path)
    assert str(tmp_path) in str(error.value)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(LatxaError, match=r"holds no tokenizer\.json"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["llama", "smollm"])
def test_the_bytes_of_a_texts_tokens_are_its_bytes(name, request):
    tokenizer = request.getfixturevalue(name)
    sizes = tokenizer.bytes_of_tokens()
    for text in ("Kaixo, mundua!", "Ñabar \u00f1 \u65e5\u672c\u8a9e \U0001f40f\n\n  bat", "123456 elektriko\t"):
        ids = documents(tokenizer, [text])[0]
        assert sizes[ids].sum() == len(text.encode())
