"""AdamW with the distributed optimizer, and the learning-rate schedule, both megatron-core's."""

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.transformer.module import Float16Module

from latxa_megatron.model.layout import Precision
from latxa_megatron.sections import OptimizerSection
from latxa_megatron.train.optimizer_state import SharedOutOptimizer


def wrap(chunks: list[GPTModel], precision: Precision, *, cuda_graph: bool = False) -> list[DistributedDataParallel]:
    """The chunks with gradients that are reduced over data- and context-parallel ranks, and optimizer state sharded over them.

    Both directions go on beside the computation: gradients while backward runs, weights while the next forward does. A CUDA graph
    has no part in the second: what gathers weights only where they are old would be recorded as it happened to be.
    """
    config = chunks[0].config
    modules = [Float16Module(config, chunk) for chunk in chunks] if config.bf16 else chunks
    overlap = parallel_state.get_data_parallel_world_size(with_context_parallel=True) > 1
    ddp = DistributedDataParallelConfig(
        use_distributed_optimizer=True,
        grad_reduce_in_fp32=precision.gradients == torch.float32,
        overlap_grad_reduce=overlap,
        overlap_param_gather=overlap and not cuda_graph,
        fp8_param_gather=precision.fp8_params,
    )
    model = [DistributedDataParallel(config, ddp, m, disable_bucketing=i > 0) for i, m in enumerate(modules)]
    if overlap:
        config.no_sync_func = [chunk.no_sync for chunk in model] if len(model) > 1 else model[0].no_sync
    return model


def gather_weights(model: list[DistributedDataParallel]) -> None:
    """Finish the gathering of updated weights that the next forward would wait for. Before a save; all ranks call it."""
    for chunk in model:
        if chunk.ddp_config.overlap_param_gather:
            chunk.start_param_sync(force_sync=True)


def unwrap(wrapped: DistributedDataParallel) -> GPTModel:
    module = wrapped.module
    return module.module if isinstance(module, Float16Module) else module


def build_optimizer(section: OptimizerSection, model: list[DistributedDataParallel]) -> MegatronOptimizer:
    config = model[0].config
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=section.lr,
            min_lr=section.lr * section.min_lr_ratio,
            adam_beta1=section.beta1,
            adam_beta2=section.beta2,
            adam_eps=section.eps,
            weight_decay=section.weight_decay,
            clip_grad=section.clip_grad,
            bf16=config.bf16,
            params_dtype=config.params_dtype,
            use_distributed_optimizer=True,
        ),
        model,
    )
    config.finalize_model_grads_func = finalize_model_grads
    config.grad_scale_func = optimizer.scale_loss
    _share_out(optimizer)
    return optimizer


def build_schedule(section: OptimizerSection, optimizer: MegatronOptimizer, steps: int) -> OptimizerParamScheduler:
    """Linear warm-up, then the decay, counted in optimizer steps. step(1) comes before each, so the first is not at 0.

    The schedule also applies the weight decay: without one, norm weights would decay too.
    """
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=section.lr,
        min_lr=section.lr * section.min_lr_ratio,
        lr_warmup_steps=min(round(section.warmup * steps), steps - 1),
        lr_decay_steps=steps,
        lr_decay_style=section.decay,
        start_wd=section.weight_decay,
        end_wd=section.weight_decay,
        wd_incr_steps=0,
        wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,  # a resumed run follows its run file, not the schedule it was begun with
    )


def allocate_state(optimizer: MegatronOptimizer) -> None:
    """Give torch's AdamW the state it otherwise makes at its first step, so that a checkpoint has a place to load into."""
    for part in _parts(optimizer):
        if isinstance(part.optimizer, torch.optim.AdamW):
            for group in part.optimizer.param_groups:
                for p in group["params"]:
                    if not part.optimizer.state[p]:
                        part.optimizer.state[p].update(
                            step=torch.zeros(()), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p)
                        )


def _parts(optimizer: Any) -> list[Any]:
    return getattr(optimizer, "chained_optimizers", [optimizer])


def _share_out(optimizer: Any) -> None:
    """Make checkpoints of it as optimizer_state.py says, and its load right for torch's AdamW.

    megatron-core expects apex's or Transformer Engine's Adam, with one step for all. With torch's, which has one for each
    parameter, it fails to find 'step', or gives all of them the same tensor, which then advances once for each.
    """
    for part in _parts(optimizer):
        if isinstance(part, DistributedOptimizer):
            part.__class__ = _TorchAdamOptimizer if isinstance(part.optimizer, torch.optim.AdamW) else SharedOutOptimizer


class _TorchAdamOptimizer(SharedOutOptimizer):
    def _set_main_param_and_optimizer_states(self, model_param: Any, tensors: dict[str, Any]) -> None:
        group, order = self.model_param_group_index_map[model_param]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][order]]
        if "step" in state:
            tensors = {"step": state["step"], **tensors}
        super()._set_main_param_and_optimizer_states(model_param, tensors)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for state in self.optimizer.state.values():
            if "step" in state:
                state["step"] = state["step"].clone()
