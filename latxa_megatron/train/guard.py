"""Steps that must not change the model: a loss or gradient norm that is no number, or a spike."""

import math
import statistics
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from latxa_megatron.model import device
from latxa_megatron.sections import GuardSection

HISTORY = 100
"""Steps that a spike is measured against; with fewer than a fifth of them there is no spike yet."""


class Guard:
    """Stands before the optimizer's update and lets it through or not, on all ranks alike."""

    def __init__(self, section: GuardSection, optimizer: Any) -> None:
        self._section = section
        self._losses: deque[float] = deque(maxlen=HISTORY)
        self._norms: deque[float] = deque(maxlen=HISTORY)
        self._loss = 0.0
        self.fault: str | None = None
        self._grad_norm, self._update = optimizer.get_grad_norm, optimizer.step_with_ready_grads
        optimizer.get_grad_norm, optimizer.step_with_ready_grads = self._judge, self._let_through

    def expect(self, loss: float) -> None:
        """Say what the loss of the step is whose update comes next; `fault` then says why it was held back, or is None."""
        self._loss = loss

    def _judge(self) -> Any:
        norm = self._grad_norm()
        self.fault = _agreed(self._fault(self._loss, float(norm)))
        if self.fault is None:
            self._losses.append(self._loss)
            self._norms.append(float(norm))
        return norm

    def _fault(self, loss: float, norm: float) -> str | None:
        if not math.isfinite(loss) or not math.isfinite(norm):
            return f"the loss is {loss:.4g}, the gradient norm {norm:.4g}"
        for what, value, before, factor in (
            ("loss", loss, self._losses, self._section.loss_spike),
            ("gradient norm", norm, self._norms, self._section.grad_norm_spike),
        ):
            if factor is not None and len(before) >= HISTORY // 5 and value > factor * statistics.median(before):
                return f"the {what} is {value:.4g}, {factor:g} times the median of the last {len(before)} steps and more"
        return None

    def _let_through(self) -> bool:
        return self.fault is None and bool(self._update())


def _agreed(fault: str | None) -> str | None:
    """Ranks have the same loss and norm, unless the hardware of one fails; then all take it as a fault."""
    flag = torch.tensor([fault is not None], dtype=torch.int32, device=device.device())
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return fault or ("another rank found a fault, this one none" if flag.item() else None)


class Patience:
    """What is done about faults, by how many there were in a row."""

    def __init__(self, section: GuardSection) -> None:
        self._section = section
        self._in_a_row = 0
        self._rollbacks = 0

    def after(self, first: str | None, again: str | None, *, can_roll_back: Callable[[], bool]) -> str | None:
        """After a step whose first try had the fault `first`, and its second `again`: what is done about it.

        None after a good step, else "repeated" (the second try was good), "skipped", "rolled back" or "stopped".
        """
        if again is None:
            self._in_a_row = 0
            return "repeated" if first else None
        self._in_a_row += 1
        if self._in_a_row <= self._section.skips:
            return "skipped"
        if self._rollbacks < self._section.rollbacks and can_roll_back():
            self._rollbacks += 1
            self._in_a_row = 0
            return "rolled back"
        return "stopped"
