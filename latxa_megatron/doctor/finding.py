"""A finding is one line of the table; a look is a function that returns some. One that throws is a finding, too."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from latxa_megatron.errors import LatxaError

State = Literal["ok", "warn", "fail"]
ORDER: tuple[State, ...] = ("ok", "warn", "fail")


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it is, what was found, and what to do about it; mend is empty where all is well.

    measure: of nodes whose findings have one, the lowest speaks for all that are in the same state.
    """

    check: str
    state: State
    found: str
    mend: str = ""
    measure: float | None = None


def look(check: str, function: Callable[..., list[Finding]], *arguments: Any) -> list[Finding]:
    """What a look returns, or the error that ended it, as a failure of that name."""
    try:
        return function(*arguments)
    except LatxaError as error:
        return [Finding(check, "fail", str(error), "mend that, and look again")]
    except Exception as raised:
        first = raised
        while isinstance(first.__cause__, Exception):  # what went wrong first, and not what was made of it
            first = first.__cause__
        name, reason = type(first).__name__, " ".join(str(first).split())[:200]
        return [Finding(check, "fail", f"{name}: {reason}" if reason else name, "mend what the error names, and look again")]


def worst(findings: Iterable[Finding]) -> State:
    return max((finding.state for finding in findings), key=ORDER.index, default="ok")
