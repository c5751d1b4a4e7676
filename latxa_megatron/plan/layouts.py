"""The layouts of a run that training would take on so many GPUs: what `latxa plan search` looks through."""

from collections.abc import Collection, Iterator
from typing import Any

from pydantic import ValidationError

from latxa_megatron.config import RunConfig
from latxa_megatron.errors import LatxaError
from latxa_megatron.model.llama import LlamaShape
from latxa_megatron.sections import ParallelSection, TrainSection
from latxa_megatron.train.check import check_spread

KEYS = {"parallel": ("tp", "pp", "cp", "vp", "stages"), "train": ("micro_batch", "recompute")}
"""What a layout is made of, by section of the run file."""


def changed(run: RunConfig, **values: Any) -> RunConfig:
    """The run with other values of KEYS, checked as a run file is. Raises LatxaError for what none may say."""
    kept = {name: getattr(run, name) for name in RunConfig.model_fields}
    parallel, train = ({key: values[key] for key in keys if key in values} for keys in KEYS.values())
    try:
        kept["parallel"] = ParallelSection(**{**dict(run.parallel), **parallel})
        kept["train"] = TrainSection(**{**dict(run.train), **train})
        return RunConfig.model_validate(kept)
    except ValidationError as error:
        raise LatxaError(error.errors()[0]["msg"]) from None


def differences(run: RunConfig, other: RunConfig) -> dict[str, Any]:
    """The keys of a layout, dotted, of which `other` has other values than `run`."""
    return {
        f"{section}.{key}": getattr(getattr(other, section), key)
        for section, keys in KEYS.items()
        for key in keys
        if getattr(getattr(other, section), key) != getattr(getattr(run, section), key)
    }


def legal(run: RunConfig, shape: LlamaShape, gpus: int) -> bool:
    """Whether training would take it."""
    try:
        check_spread(run, shape, gpus)
    except LatxaError:
        return False
    return True


def layouts(run: RunConfig, shape: LlamaShape, gpus: int, keep: Collection[str] = ()) -> Iterator[RunConfig]:
    """Every legal layout with equal stages, and where pp and vp are the run's own with its stages too; nothing recomputed.

    keep: dotted keys that stay as the run has them.
    """
    for found in _layouts(run, shape, gpus):
        if not set(keep) & set(differences(run, found)) - {"train.recompute"}:
            yield found


def _layouts(run: RunConfig, shape: LlamaShape, gpus: int) -> Iterator[RunConfig]:
    own = run.parallel.pp * run.parallel.vp
    for tp in divisors(gpus):
        for pp in divisors(gpus // tp):
            for cp in divisors(gpus // (tp * pp)):
                for micro_batch in divisors(run.train.global_batch):
                    sizes = {"tp": tp, "pp": pp, "cp": cp, "micro_batch": micro_batch, "recompute": "none"}
                    if not _goes(run, shape, gpus, sizes):
                        continue
                    for vp in divisors(shape.layers):
                        stages = [None, run.parallel.stages] if (pp, pp * vp) == (run.parallel.pp, own) else [None]
                        for each in stages[: 1 + (run.parallel.stages is not None)]:
                            try:
                                found = changed(run, **sizes, vp=vp, stages=each)
                            except LatxaError:
                                continue
                            if legal(found, shape, gpus):
                                yield found


def _goes(run: RunConfig, shape: LlamaShape, gpus: int, sizes: dict[str, Any]) -> bool:
    """Whether any division into stages could be legal: all other checks hold with layers in whatever stages."""
    pp = sizes["pp"]
    any_stages = [shape.layers, *[0] * (pp - 1)]
    return legal(changed(run, **sizes, vp=1, stages=any_stages), shape, gpus)


def divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]
