"""A tokenizer as Megatron-LM's tools use it, by its --tokenizer-type: the ids that transformers, or sentencepiece, gives."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latxa_megatron.data.engine import Engine, Fastokens, Flat, HuggingFace, inserted, prove
from latxa_megatron.data.sentence_piece import SentencePiece, load
from latxa_megatron.errors import LatxaError

SENTENCEPIECE = ("SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer")
"""Megatron-LM's types for a .model file, all the same: sentencepiece's ids of a text, with nothing around it."""

TYPES = ("HuggingFaceTokenizer", *SENTENCEPIECE)

_HARD = ["", " ", "a", "elektriko\u00a0batua <|eot_id|></s> x"]


class MegatronTokenizer:
    """own: the engine where it is not `tokenizers`. around: ids before a text, and after it. eod: the id that ends a document."""

    def __init__(
        self,
        backend: Any,
        vocab_size: int,
        eod: int | None,
        *,
        own: SentencePiece | None = None,
        around: tuple[Sequence[int], Sequence[int]] = ((), ()),
    ) -> None:
        backend.no_padding()
        backend.no_truncation()
        self._backend, self._own = backend, own
        self._engine: Engine = own or HuggingFace(backend)
        self._before, self._after = around
        self.eod = eod
        self.dtype = np.uint16 if vocab_size < 65500 else np.int32

    def accelerate(self, texts: list[str]) -> str:
        """Let encode use a faster library if it gives the same ids for these texts; says which runs, and why."""
        self._engine, why = prove(self._backend, texts, self._own)
        return f"{self._engine.name} ({why})"

    @property
    def accelerated(self) -> bool:
        return isinstance(self._engine, Fastokens)

    def encode(self, texts: list[str]) -> Flat:
        """(ids int32 [n], offsets int64 [len(texts) + 1]) of texts laid end to end, with what stands around each."""
        ids, offsets = self._engine.encode(texts)
        around = [*self._before, *self._after]
        if not around:
            return ids, offsets
        at = np.repeat([offsets[:-1], offsets[1:]], [len(self._before), len(self._after)], axis=0).T
        return inserted(ids, at.ravel(), np.tile(around, len(texts))), offsets + len(around) * np.arange(len(offsets))


def hugging_face(name: str, *, around: bool, trust_remote_code: bool) -> MegatronTokenizer:
    """That of a directory, or of a name on the hub. around: with what it puts before and after a text, such as Llama's BOS.

    Raises LatxaError where transformers cannot load it, or has no fast implementation of it.
    """
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        backend = tokenizer.backend_tokenizer
    except Exception as error:
        why = str(error).strip().partition("\n")[0]
        raise LatxaError(f"--tokenizer-model {name}: transformers loads no tokenizer.json from it ({why})") from None
    ids = _around(backend) if around else ((), ())
    found = MegatronTokenizer(backend, len(tokenizer), tokenizer.eos_token_id, around=ids)
    for text in _HARD if around else []:
        if found.encode([text])[0].tolist() != tokenizer(text).input_ids:
            raise LatxaError(f"--tokenizer-model {name}: what it puts around a text is not the same for all texts")
    return found


def sentence_piece(name: str) -> MegatronTokenizer:
    """That of a .model file. Raises LatxaError where it is none."""
    path = Path(name)
    if not path.is_file():
        raise LatxaError(f"--tokenizer-model {name}: there is no such SentencePiece .model")
    fast, own = load(path, path.read_bytes())
    backend = fast.backend_tokenizer
    backend.encode_special_tokens = True  # control tokens in a text are text to the library
    return MegatronTokenizer(backend, own.vocab_size, own.eos_id, own=own)


def _around(backend: Any) -> tuple[list[int], list[int]]:
    """Ids that a tokenizer puts before a text, and after it."""
    bare = backend.encode("a", add_special_tokens=False).ids
    whole = backend.encode("a").ids
    for at in range(len(whole) - len(bare) + 1):
        if whole[at : at + len(bare)] == bare:
            return whole[:at], whole[at + len(bare) :]
    return [], []
