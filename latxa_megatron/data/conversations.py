"""Conversations to tokens and trained spans, many at once: the same as chat.py's exact way, bit for bit.

A conversation whose roles the template renders as constant text around the contents (shapes.py) costs a few list operations
and its contents' tokenization; the tokens of a batch are then laid together, and the spans found, in numpy. Every other one
goes the exact way. The first conversations go both ways, and so does one in some thousands later, and must agree.

benchmarks/chat_speed.py times it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from latxa_megatron.data.chat import Tokens, encode_conversation
from latxa_megatron.data.messages import Message, Tools
from latxa_megatron.data.shapes import Shape, find_shape
from latxa_megatron.data.tokenizer import Tokenizer
from latxa_megatron.errors import LatxaError


class Conversation(NamedTuple):
    """place is named in errors."""

    messages: list[Message]
    place: object
    tools: Tools | None = None


@dataclass(frozen=True)
class Encoded:
    """Tokens and trained spans of conversations, end to end."""

    ids: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    """[n + 1]: the tokens of conversation i are ids[offsets[i] : offsets[i + 1]]."""
    spans: npt.NDArray[np.int32]
    """[spans, 2]: trained tokens [start, end), counted from their conversation's first."""
    span_offsets: npt.NDArray[np.int64]
    """[n + 1]: the spans of conversation i are spans[span_offsets[i] : span_offsets[i + 1]]."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """(ids [tokens], spans [k, 2]) of conversation i, as views."""
        return (
            self.ids[self.offsets[i] : self.offsets[i + 1]],
            self.spans[self.span_offsets[i] : self.span_offsets[i + 1]],
        )


@dataclass
class _Batch:
    """What the conversations of a batch are laid together from. One that went the exact way is all constant."""

    texts: list[str] = field(default_factory=list)
    constants: list[npt.NDArray[np.int32]] = field(default_factory=list)
    lengths: list[npt.NDArray[np.int64]] = field(default_factory=list)
    shapes: list[Shape | None] = field(default_factory=list)
    exact_spans: list[list[tuple[int, int]]] = field(default_factory=list)
    both: list[int] = field(default_factory=list)
    """Conversations to be checked against the exact way."""

    def add_exact(self, tokens: Tokens) -> None:
        self.constants.append(np.asarray(tokens.ids, np.int32))
        self.lengths.append(np.array([len(tokens.ids)], np.int64))
        self.shapes.append(None)
        self.exact_spans.append(tokens.spans)


class ConversationEncoder:
    """Encodes conversations with one tokenizer. Keep it: it learns the shapes of the conversations that it meets.

    A shape is learned when its conversations are met for the (after + 1)-th time. The first `compared` conversations that go
    the fast way, and then one in `every`, go the exact way, too. Where one of the first differs, all go the exact way; with
    exact=True they do from the start.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, exact: bool = False, after: int = 2, compared: int = 200, every: int = 4096
    ) -> None:
        self._tokenizer = tokenizer
        self._after, self._compared, self._every = after, compared, every
        self._sizes = tokenizer.bytes_of_tokens()
        self._met: Counter[tuple[str, ...]] = Counter()
        self._shapes: dict[tuple[str, ...], Shape | None] = {}
        self._exact_only = exact
        self.fast = 0
        self.exact = 0
        """How many conversations went each way."""

    def encode(self, conversations: Sequence[Conversation], refused: dict[int, LatxaError] | None = None) -> Encoded:
        """Tokens of conversations; memory follows their text, so give some hundreds at once.

        Raises the LatxaError of the first one that chat.encode_conversation refuses. With a dict for `refused`, the errors go
        there by the conversation's number, and such a conversation has no tokens. Raises LatxaError, too, where after the first
        conversations agreed a later one differs from the exact way, since what went before may then be wrong.
        """
        fast_before = self.fast
        batch = _Batch()
        for number, conversation in enumerate(conversations):
            if conversation.tools or not self._add_fast(batch, number, conversation.messages):
                self.exact += 1
                batch.add_exact(self._exact(number, conversation, refused))
        encoded = self._lay_together(batch)
        for number in batch.both:
            conversation = conversations[number]
            if self._is_exact(encoded[number], conversation):
                continue
            if fast_before > self._compared:
                raise LatxaError(
                    f"{conversation.place}: the chat template of {self._tokenizer.directory} renders this conversation in "
                    "another way than others with the same roles, which were taken for alike; change the template so that what "
                    "a message says does not decide how it is rendered"
                )
            self._give_up()
            return self.encode(conversations, refused)
        return encoded

    def _give_up(self) -> None:
        self._exact_only = True
        self._shapes.clear()

    def _exact(self, number: int, conversation: Conversation, refused: dict[int, LatxaError] | None) -> Tokens:
        try:
            return encode_conversation(self._tokenizer, *conversation)
        except LatxaError as error:
            if refused is None:
                raise
            refused[number] = error
            return Tokens([], [])

    def _add_fast(self, batch: _Batch, number: int, messages: list[dict[str, Any]]) -> bool:
        """Add a conversation to the batch by its shape; False where it has none, or must be refused."""
        roles = tuple([m["role"] for m in messages])
        shape = self._shapes[roles] if roles in self._shapes else self._learn(roles)
        if shape is None or sum(map(len, messages)) != 2 * len(messages):  # a message with more than role and content
            return False
        contents = [m["content"] for m in messages]
        says = list(map(str.strip, contents))
        if not all(says) and (shape.filled or not all(says[i] for i in shape.answers)):
            return False
        if self._tokenizer.special_tokens == "error" and any(map(self._tokenizer.refused_token, contents)):
            return False
        batch.texts += shape.texts(contents)
        batch.constants.append(shape.constants)
        batch.lengths.append(shape.lengths)
        batch.shapes.append(shape)
        self.fast += 1
        if self.fast <= self._compared or self.fast % self._every == 0:
            batch.both.append(number)
        return True

    def _learn(self, roles: tuple[str, ...]) -> Shape | None:
        """The shape of conversations with these roles, remembered; None where they are rare yet."""
        if self._exact_only:
            return None
        self._met[roles] += 1
        if self._met[roles] <= self._after:
            return None
        shape = find_shape(self._tokenizer, roles, self._sizes)
        self._shapes[roles] = shape if shape is not None and self._agrees(shape, roles) else None
        return self._shapes[roles]

    def _agrees(self, shape: Shape, roles: tuple[str, ...]) -> bool:
        """Whether the shape gives three conversations the tokens and spans of the exact way."""
        control = "" if self._tokenizer.special_tokens == "error" else "".join(list(self._tokenizer.control_tokens)[:8])
        for content in ("Zer da hau?", " \n Etxe\u00e1 bat.\n\n", f"a {control} b"):
            messages = [{"role": role, "content": f"{content}{i}"} for i, role in enumerate(roles)]
            batch = _Batch(shape.texts([m["content"] for m in messages]), [shape.constants], [shape.lengths], [shape])
            if not self._is_exact(self._lay_together(batch)[0], Conversation(messages, "a trial")):
                return False
        return True

    def _is_exact(self, found: tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]], conversation: Conversation) -> bool:
        """Whether these (ids, spans) are what the exact way gives; it may refuse the conversation, too."""
        try:
            exact = encode_conversation(self._tokenizer, *conversation)
        except LatxaError:
            return False
        return found[0].tolist() == exact.ids and list(map(tuple, found[1].tolist())) == exact.spans

    def _lay_together(self, batch: _Batch) -> Encoded:
        ids, offsets = self._tokenizer.encode_texts(batch.texts)
        # Constant tokens, a stretch, constant tokens, a stretch: one pair each, and an empty stretch at a conversation's end.
        pairs = np.array([len(some) for some in batch.lengths], np.int64)
        last = np.cumsum(pairs)  # pairs up to each conversation's end
        lengths = np.zeros((int(pairs.sum()), 2), np.int64)
        lengths[:, 0] = np.concatenate(batch.lengths or [np.empty(0, np.int64)])
        has_stretch = np.ones(len(lengths), bool)
        has_stretch[last - 1] = False
        lengths[has_stretch, 1] = np.diff(offsets)
        ends = np.cumsum(lengths.ravel())
        whole = np.empty(int(ends[-1]) if len(ends) else 0, np.int32)
        is_constant = np.repeat(np.tile([True, False], len(lengths)), lengths.ravel())
        whole[is_constant] = np.concatenate(batch.constants or [np.empty(0, np.int32)])
        whole[~is_constant] = ids
        conversation_ends = np.concatenate([[0], ends[1::2][last - 1]])
        spans, span_offsets = self._spans(batch, whole, ends, last - pairs, conversation_ends[:-1])
        return Encoded(whole, conversation_ends, spans, span_offsets)

    def _spans(
        self,
        batch: _Batch,
        whole: npt.NDArray[np.int32],
        ends: npt.NDArray[np.int64],
        first_pairs: npt.NDArray[np.int64],
        begins: npt.NDArray[np.int64],
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Spans of the batch: those of the exact way, and of each answer from its content's first token to its end of turn."""
        exact = iter(batch.exact_spans)
        known = [None if shape is not None else next(exact) for shape in batch.shapes]
        counts = [len(some) if some is not None else 0 for some in known]
        counts = [len(shape.answers) if shape is not None else n for shape, n in zip(batch.shapes, counts, strict=True)]
        span_offsets = np.cumsum([0, *counts], dtype=np.int64)
        by_shape = np.repeat(np.array([shape is not None for shape in batch.shapes], bool), counts)
        spans = np.empty((len(by_shape), 2), np.int32)
        shapes = [shape for shape in batch.shapes if shape is not None]
        if shapes:
            owner = np.repeat(np.arange(len(counts)), counts)[by_shape]
            pair = first_pairs[owner] + np.concatenate([shape.answers for shape in shapes])
            start, end = ends[2 * pair], ends[2 * pair + 1]
            first = self._first_at(whole, start, end, np.concatenate([shape.begins for shape in shapes]))
            spans[by_shape] = (np.stack([first, end + 1], axis=1) - begins[owner, None]).astype(np.int32)
        if len(shapes) < len(counts):
            spans[~by_shape] = np.array([span for some in known for span in some or []], np.int32).reshape(-1, 2)
        return spans, span_offsets

    def _first_at(
        self,
        whole: npt.NDArray[np.int32],
        start: npt.NDArray[np.int64],
        end: npt.NDArray[np.int64],
        bytes_before: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.int64]:
        """Of each stretch [start, end) of tokens, the first that begins at or after so many bytes; its end where none does."""
        at, left = start.copy(), bytes_before.copy()
        while (more := np.flatnonzero((left > 0) & (at < end))).size:
            left[more] -= self._sizes[whole[at[more]]]
            at[more] += 1
        return at
