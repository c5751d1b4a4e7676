"""From a run file to everything that training needs, on this rank: data, model, optimizer, and where the run stands."""

from dataclasses import dataclass
from typing import Any

from megatron.core.distributed import DistributedDataParallel

from latxa_megatron.config import RunConfig
from latxa_megatron.data.dataset import PackedDataset
from latxa_megatron.errors import LatxaError
from latxa_megatron.model import device
from latxa_megatron.model.gpt import build_model
from latxa_megatron.model.llama import LlamaShape
from latxa_megatron.model.neftune import Neftune
from latxa_megatron.train import checkpoint
from latxa_megatron.train.check import layout, precision, steps
from latxa_megatron.train.checkpoint import State
from latxa_megatron.train.distributed import spread, time_limit
from latxa_megatron.train.graph import StepGraph, use_own_stream
from latxa_megatron.train.guard import Guard
from latxa_megatron.train.inputs import padded_length
from latxa_megatron.train.optimizer import build_optimizer, build_schedule, gather_weights, unwrap, wrap
from latxa_megatron.train.save import Saver


@dataclass(frozen=True)
class Job:
    """A run under way. start: the steps that are done. total: the steps it ends after."""

    run: RunConfig
    dataset: PackedDataset
    shape: LlamaShape
    noise: Neftune
    model: list[DistributedDataParallel]
    state: State
    saver: Saver
    guard: Guard
    graph: StepGraph | None
    start: int
    total: int

    def save(self, step: int) -> None:
        """Begin the checkpoint after `step` steps. All ranks call it."""
        gather_weights(self.model)
        device.trim_heap()  # megatron-core copies what it writes
        self.saver.save(step, checkpoint.sharded(self.state), _facts(self.run, self.dataset))

    def rehearse_save(self) -> None:
        """Make the first save as fast as the next ones. To be called once the optimizer has its state; all ranks call it."""
        if device.on_gpu() and self.run.checkpoint.async_save and self.run.checkpoint.every is not None:
            self.saver.rehearse(checkpoint.sharded(self.state))

    def can_roll_back(self) -> bool:
        """Whether there is a whole checkpoint. All ranks call it."""
        return checkpoint.latest_for_all(self.run.checkpoints) is not None

    def roll_back(self, step: int) -> None:
        """Take weights and optimizer state from the newest checkpoint; the schedule and the data stay after `step` steps."""
        newest = checkpoint.latest_for_all(self.run.checkpoints)
        assert newest is not None
        self.state.schedule.num_steps = 0  # megatron-core's load_state_dict adds to them
        done = int(checkpoint.load(newest, self.state)["step"])
        self.state.schedule.step(step - done)


def set_up(run: RunConfig) -> Job:
    """The run at its newest whole checkpoint; without one, at step 0 with the weights of model.checkpoint, or random ones.

    Raises LatxaError where the checkpoint belongs to other data.
    """
    graph_safe = run.train.cuda_graph and device.on_gpu()
    if graph_safe:
        use_own_stream()
    spread(layout(run), run.train.seed, time_limit(run), graph_safe=graph_safe)
    dataset = PackedDataset(run.data.plan)
    total = steps(run, len(dataset))
    shape = LlamaShape.from_hf(run.model.hf)
    if run.parallel.tp_overlap and device.has_transformer_engine():
        from latxa_megatron.model import userbuffers  # needs Transformer Engine

        positions = padded_length(dataset) * run.train.micro_batch
        userbuffers.prepare(positions, shape.hidden, run.parallel.tp, precision(run))
    chunks = build_model(
        shape,
        layout(run),
        precision(run),
        run.train.recompute,
        deterministic=run.train.deterministic,
        cuda_graph=run.train.cuda_graph,
    )
    noise = Neftune(run.train.neftune_alpha, run.train.seed, run.train.neftune_length)
    noise.attach(chunks[0])
    resumed = checkpoint.latest_for_all(run.checkpoints)
    if resumed is None and run.model.checkpoint:
        checkpoint.load_weights(checkpoint.resolve(run.model.checkpoint), chunks)
    model = wrap(chunks, precision(run), cuda_graph=run.train.cuda_graph)
    optimizer = build_optimizer(run.optimizer, model)
    state = State([unwrap(chunk) for chunk in model], optimizer, build_schedule(run.optimizer, optimizer, total))
    start = 0
    if resumed is not None:
        _check_same_data(checkpoint.read_facts(resumed), _facts(run, dataset), run)
        start = int(checkpoint.load(resumed, state)["step"])
    saver = Saver(run.checkpoints, run.checkpoint)
    graph = None
    if run.train.cuda_graph:
        graph = StepGraph(dataset.most_documents() * run.train.micro_batch, padded_length(dataset))
    return Job(run, dataset, shape, noise, model, state, saver, Guard(run.guard, optimizer), graph, start, total)


def _facts(run: RunConfig, dataset: PackedDataset) -> dict[str, Any]:
    return {"run": run.model_dump(mode="json"), "plan": dataset.plan.fingerprint}


def _check_same_data(done: dict[str, Any], facts: dict[str, Any], run: RunConfig) -> None:
    """A run goes on with the samples it began with."""
    if done["plan"] != facts["plan"]:
        raise LatxaError(f"{run.data.plan}: is not the plan that {run.out} was trained with; use a new `out:`")
    before, now = done["run"]["train"]["global_batch"], run.train.global_batch
    if before != now:
        raise LatxaError(f"train.global_batch: {run.out} was trained with {before}, not {now}; use a new `out:`")
