"""Small tokenizers, sources and stores, written without the code under test wherever that is possible."""

import json
from pathlib import Path

import numpy as np

from latxa_megatron import _core
from latxa_megatron.data.store import FORMAT, MANIFEST, VERSION, manifest_fingerprint
from latxa_megatron.files import write_json

DOCUMENT_END, TURN_START, TURN_END = 0, 1, 2
BEGIN = 259
CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_ids(text: str) -> list[int]:
    """What the byte tokenizer makes of a text."""
    return [3 + byte for byte in text.encode()]


def write_tokenizer(directory: Path, *, template: str | None = CHATML, begin: bool = False) -> Path:
    """A tokenizer of single bytes: control tokens 0, 1, 2, then id 3 + b for byte b.

    With begin=True it has <|begin|> (259) and puts it before each text, as Llama's does.
    """
    import tokenizers
    import transformers
    from tokenizers import decoders, models, pre_tokenizers, processors

    vocabulary = {token: i for i, token in enumerate(CONTROL_TOKENS)}
    vocabulary |= {character: 3 + byte for byte, character in _byte_characters().items()}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(CONTROL_TOKENS + (["<|begin|>"] if begin else []))
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", BEGIN)])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", bos_token="<|begin|>" if begin else None
    )
    fast.chat_template = template
    fast.save_pretrained(str(directory))
    return directory


def _byte_characters() -> dict[int, str]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def write_jsonl(path: Path, values: list) -> Path:
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")
    return path


Document = tuple[list[int], list[tuple[int, int]]]
"""Token ids and trained spans."""


def write_shard(prefix: Path, documents: list[Document], *, token_type: int = 4, masked: bool = True) -> _core.ShardWriter:
    """One shard, with NAME.mask if masked; token_type 4 is int32, 8 is uint16."""
    writer = _core.ShardWriter(str(prefix), token_type, masked)
    for tokens, spans in documents:
        writer.add(np.array(tokens, np.int32), np.array(spans, np.int32).reshape(-1, 2))
    writer.finish()
    return writer


def write_store(directory: Path, shards: list[tuple[str, list[Document]]], *, masked: bool = True, token_type: int = 4) -> Path:
    """A store of shards, int32 where token_type is not 8, each with the name of its source and its documents."""
    directory.mkdir(parents=True)
    infos = []
    for i, (source, documents) in enumerate(shards):
        name = f"{i:05d}"
        writer = write_shard(directory / name, documents, token_type=token_type, masked=masked)
        infos.append(
            {
                "name": name,
                "source": source,
                "documents": writer.documents,
                "tokens": writer.tokens,
                "trained_tokens": writer.trained_tokens,
                "sha256": {"ids": repr(documents)},  # stands for the files' sums: other documents, another store
            }
        )
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "tokenizer": {"fingerprint": "none", "vocab_size": 1 << 20, "bos": None, "document_end": 0, "template": None},
        "settings": {},
        "sources": {source: {"hold_out": 0.0, "files": []} for source, _ in shards},
        "mask": "spans" if masked else "all",
        "shards": infos,
    }
    manifest["fingerprint"] = manifest_fingerprint(manifest)
    write_json(directory / MANIFEST, manifest)
    return directory


def numbered_documents(lengths: list[int], first: int = 1) -> list[list[int]]:
    """Documents of these lengths whose tokens are first, first + 1, ...: each token of a store is told by its id."""
    documents = []
    for length in lengths:
        documents.append(list(range(first, first + length)))
        first += length
    return documents
