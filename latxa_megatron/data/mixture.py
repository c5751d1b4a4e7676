"""Mixtures: the stores of a plan, and how often each source is seen, as epochs or as a weight.

A weight is a number of tokens, or a share of all tokens of the plan; both become epochs, mostly fractional ones, from the tokens
that the stores count. Sources with a share make up that share of everything; the others keep their epochs, and so set the size.
"""

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from latxa_megatron.data.store import TokenStore
from latxa_megatron.errors import LatxaError
from latxa_megatron.sections import DataSection
from latxa_megatron.weight import Weight, total_tokens


@dataclass(frozen=True)
class Mix:
    """A store in the mixture, and how often each document of each of its sources is seen: 1 time where none is named."""

    store: Path
    epochs: dict[str, float]


def mixture_of(section: DataSection) -> list[Mix]:
    """The mixture that a run file describes. Raises LatxaError for weights that cannot be met."""
    amounts = {name: source.mixed() for name, source in section.sources.items()}
    epochs = {name: amount for name, amount in amounts.items() if not isinstance(amount, Weight)}
    weights = {name: amount for name, amount in amounts.items() if isinstance(amount, Weight)}
    return with_weights([Mix(section.store, epochs)], weights)


def with_weights(mixture: list[Mix], weights: dict[str, Weight]) -> list[Mix]:
    """The mixture with the epochs that give each weighted source its tokens, in place of those it had.

    Sources of one name in several stores are one source here and get the same epochs. Raises LatxaError for a weight of no
    source, or of one without tokens, for shares that cannot be, and for a weight that is so small that no document is seen.
    """
    if not weights:
        return mixture
    totals = [TokenStore(mix.store).totals() for mix in mixture]
    known = dict.fromkeys(name for of_store in totals for name in of_store)
    for name in weights:
        if name not in known:
            raise LatxaError(f"weight of '{name}': there is no such source; there are {', '.join(known)}")
    rest = Fraction(0)
    for mix, of_store in zip(mixture, totals, strict=True):
        for name, source in of_store.items():
            if name not in weights and math.isfinite(epochs := mix.epochs.get(name, 1.0)):
                rest += Fraction(epochs) * source.tokens
    whole = total_tokens(rest, list(weights.values()))
    epochs_of = {}
    for name, weight in weights.items():
        tokens = sum(of_store[name].tokens for of_store in totals if name in of_store)
        documents = sum(of_store[name].documents for of_store in totals if name in of_store)
        wanted = weight.amount * whole if weight.is_share else weight.amount
        if not tokens or round(wanted / tokens * documents) == 0:
            raise LatxaError(f"weight of '{name}': {weight} of {tokens:,} in {documents:,} documents is not one document")
        epochs_of[name] = float(wanted / tokens)
    return [
        replace(mix, epochs={**mix.epochs, **{name: epochs_of[name] for name in of_store if name in weights}})
        for mix, of_store in zip(mixture, totals, strict=True)
    ]
