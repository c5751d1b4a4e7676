"""Loads checkpoints under each of several layouts and writes the logits of given tokens. Run under torchrun by test_logits."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from latxa_megatron.model.gpt import build_model
from latxa_megatron.model.layout import Layout, Precision
from latxa_megatron.model.llama import LlamaShape
from latxa_megatron.train.distributed import connect, disconnect, spread


def logits(chunks, tokens: torch.Tensor) -> torch.Tensor | None:
    """Logits [b, s, vocabulary] on the ranks of the last stage, through megatron-core's pipeline schedule."""
    from megatron.core import parallel_state
    from megatron.core.packed_seq_params import PackedSeqParams
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    rows, length = tokens.shape
    positions = torch.arange(length).expand_as(tokens)
    borders = torch.arange(0, rows * length + 1, length, dtype=torch.int32)
    packed = PackedSeqParams("thd", borders, borders, max_seqlen_q=length, max_seqlen_kv=length)

    def forward(_, model):
        flat = (tokens.view(1, -1), positions.reshape(1, -1), None)
        return model(*flat, packed_seq_params=packed), lambda output, non_loss_data: output

    with torch.no_grad():
        outputs = get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=[None] * len(chunks),
            model=chunks,
            num_microbatches=1,
            seq_length=tokens.numel(),
            micro_batch_size=1,
            forward_only=True,
            collect_non_loss_data=True,
        )
        if not parallel_state.is_pipeline_last_stage():
            return None
        return gather_from_tensor_model_parallel_region(outputs[0]).view(rows, length, -1)


def load_stock(directory: Path, chunks) -> None:
    """As any program on megatron-core loads weights: all that the model asks for has to be there."""
    from megatron.core import dist_checkpointing

    wanted = {f"model{i}": chunk.sharded_state_dict() for i, chunk in enumerate(chunks)}
    found = dist_checkpointing.load(wanted, str(directory))
    for i, chunk in enumerate(chunks):
        chunk.load_state_dict(found[f"model{i}"])


def main(directories: list[Path], layouts: list[dict[str, int]]) -> None:
    """Each directory has hf, ckpt and tokens.npy, and gets LAYOUT.npy for each layout's place in the list."""
    from megatron.core import parallel_state

    connect()
    for i, sizes in enumerate(layouts):
        layout = Layout(**sizes)
        spread(layout, seed=1)
        for directory in directories:
            tokens = torch.from_numpy(np.load(directory / "tokens.npy"))
            chunks = build_model(LlamaShape.from_hf(directory / "hf"), layout, Precision(torch.float32))
            load_stock(directory / "ckpt" / "iter_0000000", chunks)
            found = logits(chunks, tokens)
            last = parallel_state.get_pipeline_model_parallel_last_rank()
            if dist.get_rank() == last:
                np.save(directory / f"{i}.npy", found.numpy())
            dist.barrier()
    disconnect()


if __name__ == "__main__":
    main([Path(each) for each in sys.argv[2:]], json.loads(sys.argv[1]))
