"""How large a run is, by what its run file states alone: neither backbone nor data need be there."""

from dataclasses import dataclass
from fractions import Fraction

from latxa_megatron.config import RunConfig
from latxa_megatron.sections import SourceSection
from latxa_megatron.weight import Weight, total_tokens


@dataclass(frozen=True)
class Scale:
    """Tokens of all epochs and their training FLOPs, 0 where nothing is known of them.

    whole is False where the run file does not state the tokens of every source, and these numbers leave some out.
    """

    tokens: int
    flops: int
    whole: bool

    def describe(self) -> tuple[str, str]:
        """Tokens and FLOPs as in "16.8B+" and "7.56e+20+"; the plus says that more are not known."""
        rest = " " if self.whole else "+"
        tokens = f"{self.tokens / 1e9:.1f}B" if self.tokens >= 1e9 else f"{self.tokens:,}"
        return tokens + rest if self.tokens else "- ", f"{self.flops:.2e}{rest}" if self.flops else "- "


def scale(run: RunConfig) -> Scale:
    """6 FLOPs for each matrix parameter and token; attention's depend on the documents' lengths and do not count.

    Tokens are the positions of train.steps where the run file has these, else what it states of each source.
    """
    if run.train.steps:
        tokens, whole = run.train.steps * run.train.global_batch * run.data.seq_length, True
    else:
        tokens, whole = _tokens(list(run.data.sources.values()))
    return Scale(tokens, 6 * (run.scale.parameters or 0) * tokens, whole)


def _tokens(sources: list[SourceSection]) -> tuple[int, bool]:
    """Tokens of all epochs, and whether these are of all sources. A share of everything needs the others' tokens alone."""
    weights: list[Weight] = []
    rest, whole = Fraction(0), True
    for source in sources:
        amount = source.mixed()
        if isinstance(amount, Weight):
            weights.append(amount)
        else:
            rest += Fraction(amount) * Fraction(1 - source.hold_out) * (source.tokens or 0)
            whole = whole and bool(source.tokens)
    if not rest and all(weight.is_share for weight in weights):
        return 0, whole
    return round(total_tokens(rest, weights)), whole
