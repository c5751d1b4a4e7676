"""The sources that the builds of these tests read, and the tokens that must come of them, byte by byte."""

from pathlib import Path

from latxa_megatron.data import sources as src
from tests.data.writers import DOCUMENT_END, TURN_END, TURN_START, byte_ids, write_jsonl

DOCUMENTS = [{"id": f"d{i}", "text": f"{i}. dokumentua: " + "kaixo ñ 🙂 " * (i % 7)} for i in range(90)]
CONVERSATIONS = [
    {"messages": [{"role": "user", "content": f"Zer da {i}?"}, {"role": "assistant", "content": f"{i} zenbakia da."}]}
    for i in range(40)
]


def document_tokens(document):
    """(ids, spans) of a document for the byte tokenizer."""
    ids = [*byte_ids(document["text"]), DOCUMENT_END]
    return ids, [(0, len(ids))]


def conversation_tokens(conversation):
    """(ids, spans) of a conversation of two turns for the byte tokenizer, in ChatML."""
    question, answer = (byte_ids(message["content"]) for message in conversation["messages"])
    head = [TURN_START, *byte_ids("user\n"), *question, TURN_END, *byte_ids("\n"), TURN_START, *byte_ids("assistant\n")]
    return [*head, *answer, TURN_END, *byte_ids("\n")], [(len(head), len(head) + len(answer) + 1)]


def write_sources(directory: Path) -> Path:
    """Two files of documents and one of conversations."""
    directory.mkdir()
    write_jsonl(directory / "a.jsonl", DOCUMENTS[:50])
    write_jsonl(directory / "b.jsonl", DOCUMENTS[50:])
    write_jsonl(directory / "chat.jsonl", CONVERSATIONS)
    return directory


def corpus(files: Path, hold_out: float = 0.0) -> src.Source:
    return src.find("corpus", [str(files / "[ab].jsonl")], hold_out)


def chat(files: Path) -> src.Source:
    return src.find("chat", [str(files / "chat.jsonl")])


def contents(directory: Path) -> dict[str, bytes]:
    """Path and bytes of every file below a directory."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
