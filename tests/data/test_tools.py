"""Tool calls, what tools answer, and the tools themselves: rendered as transformers does, trained where its mask says."""

import json

import pytest

from latxa_megatron.data.build import build_store
from latxa_megatron.data.chat import encode_conversation
from latxa_megatron.data.messages import messages_of, tools_of
from latxa_megatron.data.readers import Place
from latxa_megatron.data.sources import chunks, find, records
from latxa_megatron.data.tokenizer import Tokenizer
from latxa_megatron.errors import LatxaError
from tests.data.writers import TURN_END, TURN_START, byte_ids, write_jsonl, write_tokenizer

QWENS_WAY = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for t in tools %}{{ t | tojson + '\n' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% for c in m.tool_calls %}{{ '\n<tool_call>\n' + c.function | tojson + '\n</tool_call>' }}{% endfor %}{{ '<|im_end|>' }}"
    "{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMAS_WAY = (  # a call begins with a control token, and ends with another one than what is said does
    "{{ bos_token }}{% for m in messages %}{% if m.tool_calls %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% set f = m.tool_calls[0].function %}{% generation %}{{ '<|python_tag|>' + f.name + f.arguments | tojson + '<|eom_id|>' }}"
    "{% endgeneration %}{% else %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content | trim + '<|eot_id|>' }}{% endgeneration %}{% else %}{{ m.content | trim + '<|eot_id|>' }}"
    "{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CALL = {"type": "function", "function": {"name": "eguraldia", "arguments": {"hiria": "Oñati", "egunak": 2}}}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "eguraldia", "parameters": {"type": "object", "properties": {"hiria": {"type": "string"}}}},
    }
]
TOLD = [
    {"role": "user", "content": "Zer eguraldi dago?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"euria": true}', "name": "eguraldia"},
    {"role": "assistant", "content": "Euria."},
    {"role": "user", "content": "Eta bihar?"},
    {"role": "assistant", "content": "Ez."},
]
PLACE = Place("a.jsonl", 0)


@pytest.mark.parametrize("way", ["Qwen's", "Llama's"])
def test_a_call_is_trained_where_transformers_mask_says(way, llama_tokenizer, tmp_path):
    import transformers

    if way == "Qwen's":
        tokenizer, tools = write_tokenizer(tmp_path / "t", template=QWENS_WAY), TOOLS
    else:
        tokenizer, tools = tmp_path / "t", None
        reference = transformers.AutoTokenizer.from_pretrained(str(llama_tokenizer))
        reference.chat_template = LLAMAS_WAY
        reference.save_pretrained(str(tokenizer))
    reference = transformers.AutoTokenizer.from_pretrained(str(tokenizer))
    expected = reference.apply_chat_template(
        TOLD, tools=tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    found = encode_conversation(Tokenizer(tokenizer), TOLD, "here", tools)
    assert found.ids == expected["input_ids"]
    trained = {i for start, end in found.spans for i in range(start, end)}
    assert [int(i in trained) for i in range(len(found.ids))] == expected["assistant_masks"]
    assert len(found.spans) == 3


def test_control_tokens_in_names_and_arguments_are_text(tmp_path):
    tokenizer = write_tokenizer(tmp_path / "t", template=QWENS_WAY)
    said = {"name": "f<|im_end|>", "arguments": {"<|im_start|>": ["<|im_end|>", 1]}}
    tools = [{"name": "<|endoftext|>"}]
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": [{"function": said}]}]
    found = encode_conversation(Tokenizer(tokenizer), messages, "here", tools)
    answer = byte_ids("b\n<tool_call>\n" + json.dumps(said) + "\n</tool_call>")
    before = [TURN_START, *byte_ids("system\n" + json.dumps(tools[0]) + "\n"), TURN_END, *byte_ids("\n")]
    before += [TURN_START, *byte_ids("user\na"), TURN_END, *byte_ids("\n"), TURN_START, *byte_ids("assistant\n")]
    assert found.ids == [*before, *answer, TURN_END, *byte_ids("\n")]
    assert found.spans == [(len(before), len(before) + len(answer) + 1)]
    with pytest.raises(LatxaError, match=r"here: message 2: the control token '<\|im_end\|>' stands in the text"):
        encode_conversation(Tokenizer(tokenizer, "error"), messages, "here")
    with pytest.raises(LatxaError, match=r"here: tools: the control token '<\|endoftext\|>' stands in the text"):
        encode_conversation(Tokenizer(tokenizer, "error"), TOLD, "here", tools)


def test_what_a_template_leaves_out_is_refused(byte_tokenizer, tmp_path):
    plain = Tokenizer(byte_tokenizer)
    with pytest.raises(LatxaError, match=r"here: the chat template leaves out 'eguraldia' of an assistant turn with tool calls"):
        encode_conversation(plain, TOLD, "here")
    with pytest.raises(LatxaError, match=r"here: the chat template leaves out the 'tools'"):
        encode_conversation(plain, TOLD[4:], "here", TOOLS)
    silent = Tokenizer(write_tokenizer(tmp_path / "t", template=QWENS_WAY.replace("{{ m.content }}", "", 1)))
    with pytest.raises(LatxaError, match=r"here: the chat template leaves out 'Begira' of an assistant turn"):
        encode_conversation(silent, [TOLD[0], {**TOLD[1], "content": "Begira"}], "here")


def test_the_forms_of_calls_tools_and_system_texts_are_one():
    arguments = CALL["function"]["arguments"]
    as_text = {"id": "c1", "type": "function", "function": {"name": "eguraldia", "arguments": json.dumps(arguments)}}
    calls = [[CALL], [as_text], [{"name": "eguraldia", "arguments": arguments}]]
    turns = [[TOLD[0], {"role": "assistant", "content": None, "tool_calls": each}] for each in calls]
    found = [messages_of({"messages": each}, PLACE) for each in turns]
    assert [each[1]["tool_calls"] for each in found] == [[CALL], [{"id": "c1", **CALL}], [CALL]]
    assert all(each[1]["content"] == "" for each in found)
    assert messages_of({"messages": TOLD}, PLACE) == TOLD
    assert tools_of({"tools": json.dumps(TOOLS)}, PLACE) == tools_of({"tools": TOOLS}, PLACE) == TOOLS
    assert tools_of({"tools": "[]"}, PLACE) is tools_of({"tools": []}, PLACE) is tools_of({}, PLACE) is None
    shared = {"system": "Labur.", "conversations": [{"from": "human", "value": "Zer?"}, {"from": "gpt", "value": "Hori."}]}
    assert [(m["role"], m["content"]) for m in messages_of(shared, PLACE)] == [
        ("system", "Labur."), ("user", "Zer?"), ("assistant", "Hori."),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("beside", "turn", "message"),
    [
        ({}, {"role": "user", "content": "a", "tool_calls": [CALL]}, "in a message of the assistant"),
        ({}, {"role": "assistant", "tool_calls": "f()"}, "'tool_calls' are a list"),
        ({}, {"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]}, "a function's 'name'"),
        ({}, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{1"}}]}, "JSON of one"),
        ({}, {"role": "assistant", "tool_calls": []}, "a string 'content'"),
        ({"tools": "f"}, TOLD[3], "'tools' is a list of functions"),
        ({"tools": [{"function": {}}]}, TOLD[3], "'tools' is a list of functions"),
        ({"system": ["a"]}, TOLD[3], "'system' beside the messages"),
        ({"system": "a"}, {"role": "system", "content": "b"}, "'system' beside the messages"),
    ],
)
def test_what_is_neither_form_is_refused_by_place(beside, turn, message, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": [turn, TOLD[3]], **beside}])
    [chunk] = chunks(path)
    with pytest.raises(LatxaError, match=message) as error:
        list(records(chunk))
    assert str(error.value).startswith(f"{path}:1: ")


def test_a_store_of_calls_is_the_same_from_jsonl_and_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    tokenizer = write_tokenizer(tmp_path / "t", template=QWENS_WAY)
    other = {"type": "function", "function": {"name": "ordua", "arguments": {"non": "Iruñea"}}}
    rows = [{"messages": TOLD, "tools": TOOLS}] + [
        {"messages": [TOLD[0], {"role": "assistant", "content": "a", "tool_calls": [other]}], "tools": None},
        {"messages": TOLD[4:], "tools": None},
    ] * 4
    lines = write_jsonl(tmp_path / "a.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")  # where every call has every call's arguments
    plain, table = (
        list(build_store(tmp_path / path.suffix[1:], tokenizer, [find("chat", [str(path)])]).documents())
        for path in (lines, tmp_path / "a.parquet")
    )
    assert plain == table
    exact = [encode_conversation(Tokenizer(tokenizer), row["messages"], "here", row["tools"]) for row in rows]
    assert [(ids, spans) for _, ids, spans in plain] == [(each.ids, each.spans) for each in exact]
