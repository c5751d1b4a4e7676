"""A Hugging Face tokenizer, with what a training corpus asks of it beside ids: BOS, document end, control tokens, identity."""

import json
import os.path
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from latxa_megatron.data.engine import Engine, Fastokens, Flat, HuggingFace, inserted, prove
from latxa_megatron.data.vocabularies import load_file, tokenizer_file
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import fingerprint

_DOCUMENT_ENDS = ("<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>")

SpecialTokens = Literal["text", "encode", "error"]
"""What becomes of a control token that a text spells literally: it stays text, it becomes the token, or the text is refused."""

_FIXED_DATE = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"
"""Llama 3.1's own default date, so that a store does not depend on the day it was built."""


class Tokenizer:
    """The tokenizer of a directory with tokenizer.json, or of a file.

    Control tokens that stand literally in a text are text by default.

    Raises LatxaError where there is none that loads, and for a special_tokens that there is not.
    """

    def __init__(self, directory: Path, special_tokens: SpecialTokens = "text") -> None:
        import transformers

        if special_tokens not in get_args(SpecialTokens):
            raise LatxaError(f"special tokens: there is no '{special_tokens}'; say {', '.join(get_args(SpecialTokens))}")
        if not directory.exists():
            raise LatxaError(f"{directory}: there is no such tokenizer directory or file")
        file, own_engine = tokenizer_file(directory), None
        try:
            if file is not None:
                self._tokenizer, own_engine = load_file(file)
            else:
                place = directory if directory.is_dir() else directory.parent
                self._tokenizer = transformers.AutoTokenizer.from_pretrained(str(place), local_files_only=True)
            self._backend = self._tokenizer.backend_tokenizer
        except LatxaError:
            raise
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            what = "holds no tokenizer.json" if directory.is_dir() else "is no tokenizer file"
            raise LatxaError(f"{directory}: {what} that transformers can load ({reason})") from None
        self.special_tokens = special_tokens
        self._backend.encode_special_tokens = special_tokens != "encode"  # True: they are text
        self._backend.no_padding()
        self._backend.no_truncation()
        if own_engine and special_tokens == "encode":
            raise LatxaError(
                f"{directory}: SentencePiece takes control tokens in texts for text; --special-tokens is text or error"
            )
        self._own_engine = own_engine
        self._engine: Engine = own_engine or HuggingFace(self._backend)
        self.directory = directory

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest token id."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def control_tokens(self) -> dict[str, int]:
        """Text of each special token -> its id."""
        return {t.content: i for i, t in self._backend.get_added_tokens_decoder().items() if t.special}

    @cached_property
    def control_pattern(self) -> re.Pattern[str]:
        """Matches one control token, the longest that fits, as its only group."""
        longest_first = sorted(self.control_tokens, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")" if longest_first else "(?!)()")

    @cached_property
    def _control_prefix(self) -> str:
        """What all control tokens begin with; to look for it takes a hundredth of the pattern's time."""
        return os.path.commonprefix(list(self.control_tokens))  # noqa: RUF071 (character by character is what is wanted)

    def refused_token(self, text: str) -> str | None:
        """A control token that the text spells, where special_tokens is "error"; else None."""
        if self.special_tokens != "error" or self._control_prefix not in text:
            return None
        found = self.control_pattern.search(text)
        return found[0] if found else None

    def check_text(self, text: str, place: object) -> None:
        """Raise LatxaError, naming place, for a text that special_tokens="error" refuses."""
        if token := self.refused_token(text):
            raise LatxaError(
                f"{place}: the control token '{token}' stands in the text; remove it, or let --special-tokens be text or encode"
            )

    @cached_property
    def bos_id(self) -> int | None:
        """The token that the tokenizer itself puts before a text (Llama's <|begin_of_text|>), or None."""
        bare = self._backend.encode("a", add_special_tokens=False).ids
        whole = self._backend.encode("a").ids
        at = len(whole) - len(bare) if whole[-len(bare) :] == bare else whole.index(bare[0])
        return whole[0] if at == 1 else None

    @cached_property
    def document_end_id(self) -> int:
        """The token after a corpus text: the model's end of text, not its end of turn."""
        for token in _DOCUMENT_ENDS:
            if token in self.control_tokens:
                return self.control_tokens[token]
        if self._tokenizer.eos_token_id is None:
            raise LatxaError(f"{self.directory}: the tokenizer has no end-of-text token")
        return int(self._tokenizer.eos_token_id)

    @property
    def chat_template(self) -> str | None:
        template = self._tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        return template

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides ids: the vocabulary, merges, normalizer, pre-tokenizer and special tokens.

        Llama 3's tokenizer.model has that of a tokenizer.json with the same content, a SentencePiece model one of its file.
        """
        if self._own_engine:
            return fingerprint({"sentencepiece": self._own_engine.sha256})
        return fingerprint({"tokenizer": self._backend.to_str(), "special": self._tokenizer.special_tokens_map})

    def accelerate(self, texts: list[str]) -> str:
        """Let encode_texts use a faster library if it gives the same ids for these texts; says which runs, and why."""
        self._engine, why = prove(self._backend, texts, self._own_engine)
        return f"{self._engine.name} ({why})"

    def accelerate_as_proved(self) -> None:
        """The same in a worker of a process that has compared: the comparison would say again what it said there."""
        self._engine = Fastokens(self._backend)

    @property
    def accelerated(self) -> bool:
        return isinstance(self._engine, Fastokens)

    def encode_texts(self, texts: list[str]) -> Flat:
        """(ids int32 [n], offsets int64 [len(texts) + 1]) of texts laid end to end; nothing before or after them."""
        return self._engine.encode(texts)

    def encode_documents(self, texts: list[str], places: Sequence[object] | None = None) -> Flat:
        """The same of corpus texts: BOS where the model wants one, the text, document end.

        Raises LatxaError for a text that special_tokens="error" refuses, naming its place, or else its number.
        """
        if self.special_tokens == "error":
            for i, text in enumerate(texts):
                self.check_text(text, places[i] if places else f"text {i + 1}")
        ids, offsets = self.encode_texts(texts)
        around = [self.document_end_id] if self.bos_id is None else [self.bos_id, self.document_end_id]
        borders = np.stack([offsets[:-1], offsets[1:]], axis=1)[:, -len(around) :]  # where they go: each text's start and end
        whole = inserted(ids, borders.ravel(), np.tile(around, len(texts)))
        return whole, offsets + len(around) * np.arange(len(offsets))

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a text and the characters [start, end) of each."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    @property
    def template_program(self) -> str:
        """The chat template as it is run: templates that ask for today's date get a fixed one."""
        return _FIXED_DATE + (self.chat_template or "")

    @property
    def template_variables(self) -> dict[str, str]:
        """What a chat template can name beside the messages: bos_token and the like."""
        return dict(self._tokenizer.special_tokens_map)

    def render_chat(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        """The text that the chat template makes of messages, and of the tools that their assistant may call."""
        return self._tokenizer.apply_chat_template(
            messages,
            tools=tools,
            chat_template=self.template_program,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )

    def encode_rendered(self, text: str) -> list[int]:
        """Ids of a rendered conversation as transformers gives them: control tokens in it are control tokens."""
        usual = self._backend.encode_special_tokens
        self._backend.encode_special_tokens = False
        try:
            return self._backend.encode(text, add_special_tokens=False).ids
        finally:
            self._backend.encode_special_tokens = usual

    @cached_property
    def places_follow_from_bytes(self) -> bool:
        """Whether a token begins as many bytes into its text as bytes_of_tokens says of the tokens before it.

        So it is for byte-level vocabularies, unless a normalizer changes the text or tokens are said to begin after their spaces.
        """
        value = json.loads(self._backend.to_str())
        if value["normalizer"] or (value["decoder"] or {}).get("type") != "ByteLevel":
            return False
        if '"trim_offsets": true' in json.dumps(value["post_processor"]):
            return False
        odd = ("single_word", "lstrip", "rstrip", "normalized")
        return not any(t[key] for t in value["added_tokens"] if t["special"] for key in odd)

    def bytes_of_tokens(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes of text behind each id, int64 [vocab_size]; 0 for control tokens.

        The sum over a text's ids is the text's length in bytes (a normalizer aside), also where a token is part of a character.
        """
        byte_level = '"ByteLevel"' in json.dumps(json.loads(self._backend.to_str())["decoder"])
        found = np.zeros(self.vocab_size, np.int64)
        for token, i in self._backend.get_vocab(with_added_tokens=True).items():
            if token in self.control_tokens:
                continue
            if byte_level and i not in self._backend.get_added_tokens_decoder():
                found[i] = len(token)  # a character stands for a byte
            elif re.fullmatch("<0x[0-9A-F]{2}>", token):
                found[i] = 1
            else:
                found[i] = len(token.replace("\u2581", " ").encode())
        return found

    def decode(self, ids: list[int]) -> str:
        return self._backend.decode(ids, skip_special_tokens=False)
