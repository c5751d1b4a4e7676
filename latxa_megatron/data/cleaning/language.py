"""Which language a text is in, by py3langid, whose model comes with the package and knows Basque.

It walks a text byte by byte in Python, so of a long one it is shown a sample.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any

from latxa_megatron.errors import LatxaError

_PIECES, _PIECE = 4, 500
"""A text longer than all pieces is judged by so many pieces of so many characters, spread evenly over it."""


class LanguageIdentifier:
    """Scores languages, named by ISO 639-1 codes such as eu."""

    def __init__(self) -> None:
        self._model = _model()

    def check(self, codes: Iterable[str]) -> None:
        """Raises LatxaError for a code that the model does not know."""
        known = set(self._model.labels)
        for code in codes:
            if code not in known:
                raise LatxaError(f"--language {code}: the identifier knows no such language; give a code, as in eu or en")

    def scores(self, text: str) -> dict[str, float]:
        """The probability of each language, the most probable first."""
        return dict(self._model.rank(_sample(text)))


@cache
def _model() -> Any:
    from py3langid import langid

    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


def _sample(text: str) -> str:
    if len(text) <= _PIECES * _PIECE:
        return text
    step = (len(text) - _PIECE) / (_PIECES - 1)
    return "\n".join(text[round(i * step) :][:_PIECE] for i in range(_PIECES))
