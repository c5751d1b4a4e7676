"""SentencePiece's .model files. Texts are encoded by the library itself, so the ids are its own, whatever the kind of model.

A `tokenizers` object stands beside it, with the same vocabulary and control tokens. For BPE models as language models have them
(Llama 2's: no rules for characters, bytes for what the vocabulary lacks) it gives the same ids, too, and a faster library may be
tried on it; for others it serves to decode.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from latxa_megatron.data.engine import Flat
from latxa_megatron.errors import LatxaError

_SPACE = "\u2581"
_UNIGRAM, _BPE = 1, 2
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5

_RUNS = [character * count for character in " a=-*.\n" for count in range(1, 40)]
"""Where a piece can be joined from its parts in two ways, SentencePiece takes the leftmost, and a list of merges the first."""


class SentencePiece:
    """The library. Control tokens in texts are text to it. convertible: whether the `tokenizers` object gives the same ids."""

    name = "sentencepiece"
    hard = _RUNS

    def __init__(self, data: bytes, convertible: bool) -> None:
        import sentencepiece

        self._processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        self.convertible = convertible
        self.vocab_size: int = self._processor.vocab_size()
        self.eos_id: int | None = self._processor.eos_id() if self._processor.eos_id() >= 0 else None
        self.sha256 = hashlib.sha256(data).hexdigest()

    def encode(self, texts: list[str]) -> Flat:
        found = [np.asarray(ids, np.int32) for ids in self._processor.encode(texts, num_threads=1)] if texts else []
        offsets = np.cumsum([0, *map(len, found)], dtype=np.int64)
        return np.concatenate(found) if found else np.empty(0, np.int32), offsets


def load(path: Path, data: bytes) -> tuple[Any, SentencePiece]:
    """A model as a transformers.PreTrainedTokenizerFast, which puts BOS before a text where the model has one, and its engine.

    Raises LatxaError for a file that is none, and for the kinds of model without subwords.
    """
    import transformers

    model = _parsed(path, data)
    if model.trainer_spec.model_type not in (_UNIGRAM, _BPE):
        raise LatxaError(f"{path}: is a SentencePiece model of words or characters; a BPE or Unigram one is needed")
    pieces, trainer = list(model.pieces), model.trainer_spec
    named = {
        f"{name}_token": pieces[i].piece
        for name, i in (("bos", trainer.bos_id), ("eos", trainer.eos_id), ("unk", trainer.unk_id))
        if 0 <= i < len(pieces) and pieces[i].type in (_CONTROL, _UNKNOWN)
    }
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=_backend(pieces, model), **named)
    return fast, SentencePiece(data, _is_plain(model))


def _parsed(path: Path, data: bytes) -> Any:
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2 as proto
    except ImportError:
        raise LatxaError(f"{path}: needs sentencepiece to be read; pip install 'latxa-megatron[sentencepiece]'") from None
    model = proto.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        model.Clear()
    if not (model.pieces and model.HasField("trainer_spec")):
        raise LatxaError(f"{path}: is neither a tokenizer.json nor a tiktoken vocabulary nor a SentencePiece model, or damaged")
    return model


def _is_plain(model: Any) -> bool:
    """Whether merges alone say what the model does with a text."""
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    return (
        trainer.model_type == _BPE
        and trainer.byte_fallback
        and not trainer.treat_whitespace_as_suffix
        and normalizer.escape_whitespaces
        and not (normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces)
        and not any(piece.type in (_USER_DEFINED, _UNUSED) for piece in model.pieces)
    )


def _backend(pieces: list[Any], model: Any) -> Any:
    import tokenizers
    from tokenizers import decoders, models, normalizers, processors

    trainer = model.trainer_spec
    if trainer.model_type == _BPE:
        ids = {piece.piece: i for i, piece in enumerate(pieces)}
        unknown = pieces[trainer.unk_id].piece
        bpe = models.BPE(ids, _merges(pieces, ids), unk_token=unknown, fuse_unk=True, byte_fallback=trainer.byte_fallback)
        backend = tokenizers.Tokenizer(bpe)
    else:
        scores = [(piece.piece, piece.score) for piece in pieces]
        backend = tokenizers.Tokenizer(models.Unigram(scores, unk_id=trainer.unk_id, byte_fallback=trainer.byte_fallback))
    prefix = model.normalizer_spec.add_dummy_prefix
    backend.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend(_SPACE)] if prefix else []), normalizers.Replace(" ", _SPACE)]
    )
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    control = [piece.piece for piece in pieces if piece.type in (_CONTROL, _UNKNOWN)]
    backend.add_special_tokens([tokenizers.AddedToken(token, normalized=False, special=True) for token in control])
    if 0 <= trainer.bos_id < len(pieces) and pieces[trainer.bos_id].type == _CONTROL:
        name = pieces[trainer.bos_id].piece
        backend.post_processor = processors.TemplateProcessing(single=f"{name} $A", special_tokens=[(name, trainer.bos_id)])
    return backend


def _merges(pieces: list[Any], ids: dict[str, int]) -> list[tuple[str, str]]:
    """The pairs of pieces that make a piece, the best score first."""
    parts = {piece.piece for piece in pieces if piece.type in (_NORMAL, _USER_DEFINED)}
    pairs = [
        (-piece.score, ids[piece.piece[:i]], ids[piece.piece[i:]], piece.piece[:i], piece.piece[i:])
        for piece in pieces
        if piece.type == _NORMAL
        for i in range(1, len(piece.piece))
        if piece.piece[:i] in parts and piece.piece[i:] in parts
    ]
    return [(left, right) for *_, left, right in sorted(pairs)]
