"""Where a run reports its steps: metrics.jsonl always, TensorBoard and Weights & Biases where the run file asks for them."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

from latxa_megatron.config import RunConfig
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import write_atomically
from latxa_megatron.train.metrics import MetricsLog

Report = Callable[[dict[str, Any]], None]
"""Takes a step's line of metrics.jsonl."""


@contextmanager
def reports(run: RunConfig, start: int) -> Iterator[Report | None]:
    """On rank 0 what reports a step everywhere; None on the others. start: the steps that are done, and stay reported.

    Raises LatxaError where Weights & Biases refuses the run.
    """
    if dist.get_rank() != 0:
        yield None
        return
    with ExitStack() as stack:
        everywhere: list[Report] = [MetricsLog(run.out, start).write]
        if run.logging.tensorboard:
            everywhere.append(stack.enter_context(_tensorboard(run.out / "tensorboard", start)))
        if run.logging.wandb:
            everywhere.append(stack.enter_context(_wandb(run, run.logging.wandb, start)))

        def report(line: dict[str, Any]) -> None:
            for each in everywhere:
                each(line)

        yield report


@contextmanager
def _tensorboard(directory: Path, start: int) -> Iterator[Report]:
    """Steps after `start` that an earlier start of the run reported are purged by TensorBoard when it reads the files."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(directory), purge_step=start + 1)

    def report(line: dict[str, Any]) -> None:
        for name, value in flat(line).items():
            writer.add_scalar(name, value, line["step"])
        writer.flush()  # a run that is killed has reported here what it has in metrics.jsonl

    try:
        yield report
    finally:
        writer.close()


@contextmanager
def _wandb(run: RunConfig, project: str, start: int) -> Iterator[Report]:
    """One W&B run from the first step to the last, whatever restarts; one that begins at step 1 again is a new one."""
    import wandb

    kept = run.out / "wandb" / "id"
    if start == 0 or not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        write_atomically(kept, uuid.uuid4().hex[:16])
    try:
        there = wandb.init(
            project=project,
            name=run.name,
            id=kept.read_text(encoding="utf-8"),
            resume="allow" if start else None,
            dir=str(run.out),
            config=run.model_dump(mode="json"),
            settings=wandb.Settings(console="off"),  # it would write the live line to a file, each time it changes
        )
    except wandb.errors.Error as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise LatxaError(f"logging.wandb: {reason}; with WANDB_MODE=offline nothing is sent") from None
    failed = 1
    try:
        yield lambda line: there.log(flat(line), step=line["step"])
        failed = 0
    finally:
        there.finish(exit_code=failed)


def flat(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line but its step, with those inside an object named as in "validation/eu/loss"."""
    found: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, dict):
            found.update({f"{name}/{inner}": each for inner, each in flat(value).items()})
        elif name != "step" and isinstance(value, int | float):
            found[name] = value
    return found
