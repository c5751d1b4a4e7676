"""What the documents of a source read like: tokens per word, bytes per token, and those that are unlike the rest.

Texts are decoded for a fixed sample of the documents alone, and only the beginning of each, so that a store of any size is
looked at in seconds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
import numpy.typing as npt

from latxa_megatron.data.documents import Part, Place, drawn
from latxa_megatron.data.tokenizer import Tokenizer

DOCUMENTS = 1000
TOKENS = 2048
"""How many documents of each source are read, and how far each."""

FEWEST = 64
"""Documents of fewer tokens are strange to no one: in so few, any figure can be far out."""

_RUN = 4


@dataclass(frozen=True)
class Text:
    """The beginning of a document, decoded with a space for each control token.

    tokens: of the whole document; read: those of the text, and bytes: its UTF-8 bytes, both without control tokens.
    """

    place: Place
    tokens: int
    read: int
    bytes: int
    text: str
    repeated: float
    """Share of its runs of four tokens that stood in it before."""

    @property
    def words(self) -> int:
        """What white space parts."""
        return len(self.text.split())

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / max(self.read, 1)


@dataclass(frozen=True)
class Reading:
    """The texts that were read of a source, together."""

    documents: int
    tokens_per_word: float
    bytes_per_token: float


@dataclass(frozen=True)
class Strange:
    """A document whose figure is far from its source's median."""

    text: Text
    figure: float
    usual: float


def texts(tokenizer: Tokenizer, source: str, parts: list[Part]) -> list[Text]:
    """The sample of a source."""
    control = np.fromiter(tokenizer.control_tokens.values(), np.int64)
    found = []
    for document in drawn(source, parts, DOCUMENTS):
        begin = document.tokens[:TOKENS]
        read = int((~np.isin(begin, control)).sum())
        text = tokenizer.decode(begin.tolist())
        size = len(tokenizer.control_pattern.sub("", text).encode())
        found.append(Text(document.place, len(document.tokens), read, size, plain(tokenizer, text), repeated(begin)))
    return found


def plain(tokenizer: Tokenizer, text: str) -> str:
    """A decoded text, with a space in place of each control token."""
    return tokenizer.control_pattern.sub(" ", text).strip()


def repeated(tokens: npt.NDArray[np.int64]) -> float:
    """Share of the runs of four tokens that stood before in the same tokens; 0 where there are fewer than four."""
    runs = len(tokens) - _RUN + 1
    if runs < 1:
        return 0.0
    return 1 - len(np.unique(np.lib.stride_tricks.sliding_window_view(tokens, _RUN), axis=0)) / runs


def together(found: list[Text]) -> Reading:
    read = sum(text.read for text in found)
    words, size = sum(text.words for text in found), sum(text.bytes for text in found)
    return Reading(len(found), read / max(words, 1), size / max(read, 1))


def strangest(found: list[Text], most: int) -> dict[str, list[Strange]]:
    """The texts with the fewest and the most bytes per token, each against its source's median, and with the most repetition."""
    long = [text for text in found if text.read >= FEWEST]
    sources = {text.place.source for text in long}

    def ranked(figure: Callable[[Text], float], strangeness: Callable[[float, float], float]) -> list[Strange]:
        usual = {name: median(figure(text) for text in long if text.place.source == name) for name in sources}
        each = [Strange(text, figure(text), usual[text.place.source]) for text in long]
        return sorted(each, key=lambda one: strangeness(one.figure, one.usual), reverse=True)[:most]

    return {
        "fewest bytes per token": ranked(lambda text: text.bytes_per_token, lambda figure, usual: -figure / usual),
        "most bytes per token": ranked(lambda text: text.bytes_per_token, lambda figure, usual: figure / usual),
        "most repetition": ranked(lambda text: text.repeated, lambda figure, usual: figure),
    }
