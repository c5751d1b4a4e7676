"""Tokenizers that come as one file: Hugging Face's tokenizer.json, Llama 3's tokenizer.model (tiktoken), SentencePiece's .model.

Each becomes what transformers makes of a directory: a fast tokenizer, of which everything after this knows. A file has no chat
template. What a file is, its content says, for tiktoken and SentencePiece both call theirs tokenizer.model.
"""

import base64
import binascii
import hashlib
from pathlib import Path
from typing import Any

from latxa_megatron.data.sentence_piece import SentencePiece, load
from latxa_megatron.errors import LatxaError

_LLAMA3 = "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55"
"""SHA-256 of the tokenizer.model of Llama 3, 3.1, 3.2 and 3.3."""

_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_LLAMA3_CONTROL = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}
"""The named ones of the 256 control tokens after the vocabulary; the others are <|reserved_special_token_N|>, N counting them."""


def tokenizer_file(path: Path) -> Path | None:
    """The file that a tokenizer's path means, and None where it is a directory for transformers.

    A tokenizer.json beside a tokenizer_config.json means its directory, and so its chat template; a directory that has only a
    tokenizer.model, as Meta's downloads have, means that.
    """
    if path.is_dir():
        known = any((path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
        return None if known or not (path / "tokenizer.model").is_file() else path / "tokenizer.model"
    return None if path.name == "tokenizer.json" and (path.parent / "tokenizer_config.json").is_file() else path


def load_file(path: Path) -> tuple[Any, SentencePiece | None]:
    """A tokenizer file as a transformers.PreTrainedTokenizerFast, and the engine of a SentencePiece model.

    Raises LatxaError for what is no tokenizer, or none that is known.
    """
    import transformers

    data = path.read_bytes()
    if data.lstrip()[:1] == b"{":
        return transformers.PreTrainedTokenizerFast(tokenizer_file=str(path)), None
    if (ranks := _tiktoken_ranks(data)) is not None:
        if hashlib.sha256(data).hexdigest() != _LLAMA3:
            raise LatxaError(
                f"{path}: is a tiktoken vocabulary of {len(ranks):,} tokens, damaged or not Llama 3's, and it does not say "
                "how texts are split; give the model's tokenizer.json"
            )
        ends = {"bos_token": _LLAMA3_CONTROL[0], "eos_token": _LLAMA3_CONTROL[1]}
        return transformers.PreTrainedTokenizerFast(tokenizer_object=_llama3(ranks), **ends), None
    return load(path, data)


def _tiktoken_ranks(data: bytes) -> dict[bytes, int] | None:
    """The rank of each token, from lines of its bytes in base64 and the rank; None for another format."""
    try:
        pairs = [line.split(b" ") for line in data.splitlines()]
        return {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs} or None
    except (ValueError, binascii.Error):
        return None


def _llama3(ranks: dict[bytes, int]) -> Any:
    """tiktoken's encoding: in each match of the pattern the pair whose union has the lowest rank is joined, until none has."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors

    names = {rank: "".join(map(_BYTE_NAMES.__getitem__, token)) for token, rank in ranks.items()}
    pairs = [
        (rank, ranks[left], ranks[right])
        for token, rank in ranks.items()
        for i in range(1, len(token))
        if (left := token[:i]) in ranks and (right := token[i:]) in ranks
    ]
    merges = [(names[left], names[right]) for _, left, right in sorted(pairs)]
    backend = tokenizers.Tokenizer(
        models.BPE({name: rank for rank, name in names.items()}, merges, ignore_merges=True, fuse_unk=False)
    )
    split = pre_tokenizers.Split(tokenizers.Regex(_LLAMA3_PATTERN), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    reserved = iter(range(256))
    control = [_LLAMA3_CONTROL.get(i) or f"<|reserved_special_token_{next(reserved)}|>" for i in range(256)]
    backend.add_special_tokens([tokenizers.AddedToken(token, normalized=False, special=True) for token in control])
    begin = processors.TemplateProcessing(single=f"{control[0]} $A", special_tokens=[(control[0], len(ranks))])
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begin])
    return backend


def _byte_names() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary: itself if it can be seen, or else one from 256 on."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in seen else next(others)) for byte in range(256)]


_BYTE_NAMES = _byte_names()
