"""The passes of a step as one CUDA graph: the GPU starts their kernels itself, where the CPU could not start them in time.

A few steps go as always, on inputs that then stay where they are. The next is recorded, and from there each step is the same
kernels on new inputs: as many documents in each microbatch, the surplus of no positions, none longer than a sample.

Messages of data parallelism are recorded with the rest. Those of other kinds are not provided for: torch keeps the memory of one
that goes from a rank to another to the end of the recording, and megatron-core may replace a buffer that the graph goes on using.
"""

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.tensor_parallel.random import get_all_rng_states
from torch import Tensor

from latxa_megatron.train.inputs import Inputs

_STEPS_BEFORE = 2
"""Steps after which no kernel is built, no buffer is first allocated and megatron-core knows the order of the gradients."""
RECORDED = _STEPS_BEFORE + 1
"""The step that is recorded. No other thread may wait for the GPU meanwhile, and memory that torch keeps pinned is let go."""

Passes = Callable[[list[Inputs]], list[Any]]
"""Forward and backward of all microbatches, and what megatron-core's schedule returns of them."""


def use_own_stream() -> None:
    """Queue all that follows in a stream of its own, since CUDA records none of the default one. Before a model is built."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    torch.cuda.set_stream(stream)


class StepGraph:
    """The passes of one run's steps, which all have the same number of microbatches.

    documents: those of the fullest microbatch. longest: positions that no document is longer than.
    """

    def __init__(self, documents: int, longest: int) -> None:
        self._documents, self._longest = documents, longest
        self._inputs: list[Inputs] = []
        self._steps = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._outputs: list[Any] = []

    def __enter__(self) -> "StepGraph":
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of what was recorded: NCCL ends no group as long as there is a graph with its messages."""
        self._graph, self._outputs = None, []

    def run(self, config: Any, microbatches: Iterable[Inputs], passes: Passes) -> list[Any]:
        """What `passes` returns for the microbatches; the next call overwrites it. config: megatron-core's, of the model."""
        self._take([self._fixed(each) for each in microbatches])
        self._steps += 1
        if self._steps <= _STEPS_BEFORE:
            return passes(self._inputs)
        watch, config.timers = config.timers, None  # its marks would be recorded too, and tell no time
        try:
            if self._graph is None:
                self._record(passes)
            assert self._graph is not None
            watch.start()
            self._graph.replay()
            watch.stop()
        finally:
            config.timers = watch
        return self._outputs

    def _take(self, new: list[Inputs]) -> None:
        """Copy to where the graph reads."""
        if not self._inputs:
            self._inputs = new
        for old, each in zip(self._inputs, new, strict=True):
            for field in fields(Inputs):
                if isinstance(target := getattr(old, field.name), Tensor):
                    target.copy_(getattr(each, field.name))

    def _fixed(self, inputs: Inputs) -> Inputs:
        surplus = self._documents + 1 - len(inputs.borders)
        assert surplus >= 0, "a microbatch of more documents than were said"
        assert inputs.longest <= self._longest, "a longer document than was said"
        borders = torch.cat([inputs.borders, inputs.borders[-1:].expand(surplus)])
        return replace(inputs, borders=borders, longest=self._longest)

    def _record(self, passes: Passes) -> None:
        RotaryEmbedding.forward.cache_clear()  # the graph must not read what this cache may drop
        self._graph = torch.cuda.CUDAGraph()
        for state in get_all_rng_states().values():
            self._graph.register_generator_state(state)
        with torch.cuda.graph(self._graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
            self._outputs = passes(self._inputs)
