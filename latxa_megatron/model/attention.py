"""Attention inside each of several documents that lie end to end, where there is no Transformer Engine."""

import itertools
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from latxa_megatron.model.context import own_positions


class PackedAttention(MegatronModule):
    """megatron-core's core attention for THD batches, causal, with torch's kernel document by document.

    With context parallelism each rank gathers all keys and values: the mathematics of Transformer Engine's ring, not its economy.
    """

    def __init__(self, config: TransformerConfig, *_: Any, pg_collection: ProcessGroupCollection, **__: Any) -> None:
        super().__init__(config)
        self._cp = pg_collection.cp

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *_: Any, packed_seq_params: PackedSeqParams, **__: Any
    ) -> Tensor:
        """[t, heads, head size] of t of this rank's positions, from query of that shape and key, value [t, groups, head size]."""
        borders = packed_seq_params.cu_seqlens_q.cpu()
        cp, rank = self._cp.size(), self._cp.rank()
        positions = own_positions(borders, cp, rank).to(query.device)
        if cp > 1:
            order = torch.cat([own_positions(borders, cp, other) for other in range(cp)]).argsort().to(query.device)
            key, value = (gather_from_sequence_parallel_region(each, group=self._cp)[order] for each in (key, value))
        found = []
        for start, end in itertools.pairwise(borders.tolist()):
            own = slice(start // cp, end // cp)
            q, k, v = (each.transpose(0, 1)[None] for each in (query[own], key[start:end], value[start:end]))
            rows = positions[own, None] - start
            seen = None if cp == 1 else rows >= torch.arange(end - start, device=rows.device)
            out = scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=cp == 1, enable_gqa=True)
            found.append(out[0].transpose(0, 1))
        return torch.cat(found)
