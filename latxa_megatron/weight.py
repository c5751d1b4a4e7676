"""How much of a source a plan should show: a number of tokens, or a share of all."""

import re
from dataclasses import dataclass
from fractions import Fraction

from latxa_megatron.errors import LatxaError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}


@dataclass(frozen=True)
class Weight:
    """How many tokens of a source are seen, or (is_share) what part of all tokens that are."""

    amount: Fraction
    is_share: bool

    @classmethod
    def parse(cls, text: str | float) -> "Weight":
        """`500M`, `2.5e9` or `2.5B` tokens; a share as `0.3` or `30%`: what is below 1 and has no unit is a share.

        Raises LatxaError for anything else, for a share of 0 or of 100% and more, and for less than one token.
        """
        match = re.fullmatch(r"(\d+\.?\d*|\.\d+)(?:[eE]([-+]?\d{1,2}))?\s*(%|[KMBGT]?)", str(text).strip().replace("_", ""))
        if match:
            number, unit = Fraction(match[1]) * Fraction(10) ** int(match[2] or 0), match[3]
            if unit == "%" and 0 < number < 100:
                return cls(number / 100, True)
            if not unit and 0 < number < 1:
                return cls(number, True)
            if unit != "%" and number * _UNITS[unit] >= 1:
                return cls(number * _UNITS[unit], False)
        raise LatxaError(f"a weight is a number of tokens, as 500M or 2.5e9, or a share below 1, as 0.3 or 30%; not '{text}'")

    def __str__(self) -> str:
        return f"{float(self.amount * 100):g}%" if self.is_share else f"{float(self.amount):.4g} tokens"


def total_tokens(rest: Fraction, weights: list[Weight]) -> Fraction:
    """Tokens of all that is seen, `rest` being those of the sources without a weight.

    Raises LatxaError where the shares leave nothing to the others, or there are no others whose tokens would say how much it is.
    """
    fixed = rest + sum(weight.amount for weight in weights if not weight.is_share)
    shares = sum((weight.amount for weight in weights if weight.is_share), Fraction(0))
    if shares >= 1:
        raise LatxaError(f"the shares sum up to {float(shares):.0%}; lower them, so that the other sources have some")
    if shares and not fixed:
        raise LatxaError("each source has a share, and none says how much that is; give one epochs or a number of tokens")
    return fixed / (1 - shares)
