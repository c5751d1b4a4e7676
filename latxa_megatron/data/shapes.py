"""What a chat template writes around the contents of all conversations with the same roles in the same order.

Most templates write constant text and the contents, verbatim or without the spaces around them. Such a template need not run
for each conversation: its constant pieces are tokenized once. Whether it is one is not believed but tried. It renders contents
that note what is done to them; one that looks at a content (Qwen 3's searches it for </think>) does not fit. What it renders of
PROBES must be the pieces and the contents laid together.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import add
from typing import Any

import numpy as np
import numpy.typing as npt

from latxa_megatron.data.tokenizer import Tokenizer
from latxa_megatron.data.watch import render_watched

Trim = Callable[[str], str]

_LEFT, _RIGHT = "\u2003\u2005", "\u2004\u2006"
"""Spaces that no template writes: where they are missing beside a content, it was stripped there."""

_TRIMS: dict[tuple[bool, bool], Trim] = {
    (True, True): str,
    (False, True): str.lstrip,
    (True, False): str.rstrip,
    (False, False): str.strip,
}
"""(whether the spaces before stay, whether those after do) -> what does that."""

PROBES = [
    *("", " ", "\n", "x", " x", "x ", "\n\n x\r\n\t", "\u00a0\u200bx\u2028", "ñ 日本語 🙂 e\u0301", "0", "None", "a" * 2000),
    *("</think>", "<think>\na\n</think>\n\nb", '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>', "/no_think"),
    *("[INST] {{ x }} {% endif %} [/INST]", "{'a': \"b\"} \\ \\n & < > &amp;", "<|x|><s></s>", "# Tools\n```\n---"),
]


@dataclass(frozen=True)
class Shape:
    """The constant part of conversations of n messages, which lies before, between and after their contents.

    Each content has a stretch of text of its own, between two control tokens: befores[i], the content, afters[i]. Between the
    stretches lie constant tokens.
    """

    befores: list[str]
    afters: list[str] | None
    """None where nothing follows any content in its stretch."""
    trims: list[Trim] | Trim
    filled: bool
    """Whether it is of contents alone that are more than spaces."""
    constants: npt.NDArray[np.int32]
    """Constant tokens end to end."""
    lengths: npt.NDArray[np.int64]
    """[n + 1]: how many of them lie before each stretch, and after the last."""
    answers: npt.NDArray[np.int64]
    """Which messages are the assistant's: trained are their contents, with what follows up to and including one control token."""
    begins: npt.NDArray[np.int64]
    """Bytes of the stretch before each answer's content."""

    def texts(self, contents: list[str]) -> list[str]:
        """The stretches of a conversation."""
        trims = self.trims
        trimmed = [t(c) for t, c in zip(trims, contents, strict=True)] if isinstance(trims, list) else map(trims, contents)
        found = list(map(add, self.befores, trimmed))
        return found if self.afters is None else list(map(add, found, self.afters))


def find_shape(tokenizer: Tokenizer, roles: Sequence[str], sizes: npt.NDArray[np.int64]) -> Shape | None:
    """The shape of conversations with these roles; None where the template, or the tokenizer, has none.

    sizes are the tokenizer's bytes_of_tokens(). Runs the template about 25 times. Its refusal of these roles is a None, too.
    """
    if not tokenizer.places_follow_from_bytes:
        return None
    try:
        found = _pieces(tokenizer, roles)
    except Exception:  # a template is a program of someone else's: it may raise anything
        return None
    if found is None or _could_straddle(found[0], tokenizer.control_tokens):
        return None
    return _compile(tokenizer, roles, sizes, *found)


def _messages(roles: Sequence[str], contents: Sequence[str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]


def _pieces(tokenizer: Tokenizer, roles: Sequence[str]) -> tuple[list[str], list[Trim], bool] | None:
    """The n + 1 constant pieces around n contents, what is done to each content, and whether only if it is more than spaces."""
    names = [chr(0xF0000 + i) for i in range(min(len(roles), 0xFFFE))]  # private-use characters, each one content
    any_name = re.compile("[\U000f0000-\U000ffffd]")
    text, looks = render_watched(tokenizer, roles, names)
    pieces = any_name.split(text)
    if any_name.findall(text) != names or looks - {"__bool__"} or len(names) < len(roles):
        return None
    spaced = tokenizer.render_chat(_messages(roles, [_LEFT + name + _RIGHT for name in names]))
    between = any_name.split(spaced)
    if any_name.findall(spaced) != names:
        return None
    trims = [_TRIMS[_LEFT in before, _RIGHT in after] for before, after in itertools.pairwise(between)]
    if tokenizer.render_chat(_messages(roles, names)) != text:
        return None
    probes = [probe for probe in PROBES if probe.strip() or not looks]
    for shift in range(len(probes)):
        contents = [probes[(shift + i) % len(probes)] for i in range(len(roles))]
        shown = [trim(content) for trim, content in zip(trims, contents, strict=True)]
        expected = "".join(map(add, pieces, [*shown, ""]))
        if tokenizer.render_chat(_messages(roles, contents)) != expected:
            return None
    return pieces, trims, bool(looks)


def _could_straddle(pieces: list[str], control_tokens: dict[str, int]) -> bool:
    """Whether a control token could come about from a content and the text beside it, or be changed by stripping."""
    heads = {token[:i] for token in control_tokens for i in range(1, len(token))}
    tails = {token[i:] for token in control_tokens for i in range(1, len(token))}
    longest = max(map(len, control_tokens), default=0)
    return (
        any(token != token.strip() for token in control_tokens)
        or any(piece[-i:] in heads for piece in pieces[:-1] for i in range(1, longest))
        or any(piece[:i] in tails for piece in pieces[1:] for i in range(1, longest))
        or any(piece in token for piece in pieces[1:-1] for token in control_tokens if piece != token)
    )


def _compile(
    tokenizer: Tokenizer,
    roles: Sequence[str],
    sizes: npt.NDArray[np.int64],
    pieces: list[str],
    trims: list[Trim],
    filled: bool,
) -> Shape | None:
    """The shape of these pieces; None if two contents share a stretch of text, or an answer has no end, or BOS is unclear."""
    befores, afters, constants = [], [], []
    for i, piece in enumerate(pieces):
        parts = tokenizer.control_pattern.split(piece)  # text, control token, text, ..., text
        first, last = i == 0, i == len(roles)
        if len(parts) == 1 and (not (first or last) or (last and roles[-1] == "assistant")):
            return None
        if not first:
            afters.append(parts.pop(0))
        if not last:
            befores.append(parts.pop() if parts else "")
        constants.append(_constant_ids(tokenizer, parts))
    if tokenizer.bos_id is not None:
        if not constants[0]:
            return None
        if constants[0][0] != tokenizer.bos_id:
            constants[0].insert(0, tokenizer.bos_id)
    answers = [i for i, role in enumerate(roles) if role == "assistant"]
    ids, _ = tokenizer.encode_texts([befores[i] for i in answers])
    begins = [len(befores[i].encode()) for i in answers]
    if sizes[ids].sum() != sum(begins):
        return None
    return Shape(
        befores,
        afters if any(afters) else None,
        trims[0] if len(set(trims)) == 1 else trims,
        filled,
        np.array([i for some in constants for i in some], np.int32),
        np.array([len(some) for some in constants], np.int64),
        np.array(answers, np.int64),
        np.array(begins, np.int64),
    )


def _constant_ids(tokenizer: Tokenizer, parts: list[str]) -> list[int]:
    """Ids of texts and control tokens, each by itself."""
    ids: list[int] = []
    for part in filter(None, parts):
        control = tokenizer.control_tokens.get(part)
        ids += tokenizer.encode_with_offsets(part)[0] if control is None else [control]
    return ids
