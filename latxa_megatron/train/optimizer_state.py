"""The optimizer state in checkpoints: each rank writes and reads its own share of each tensor, where it lies.

The distributed optimizer gives a rank a range of a weight's elements, in the order of memory. As a part of the whole tensor,
which has rows and columns, a range is up to three rectangles: the end of a row, whole rows, the beginning of a row. torch_dist
checkpoints take rectangles of any size, so nothing has to be gathered. megatron-core's own way to a checkpoint that loads at any
layout copies the whole state of a model-parallel rank, twelve bytes a parameter, to the host of every data-parallel rank. The
files are in the same format to any reader: the same names and shapes, in other pieces.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedStateDict, ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

Rectangle = tuple[tuple[int, ...], tuple[int, ...]]
"""Where it begins in a tensor, and its shape."""


class SharedOutOptimizer(DistributedOptimizer):
    """megatron-core's distributed optimizer, with `fully_reshardable` checkpoints that gather nothing."""

    def sharded_param_state_fully_reshardable(
        self, model_sharded_state_dict: ShardedStateDict, is_loading: bool = False, metadata: dict[str, Any] | None = None
    ) -> dict[int, dict[str, dict[int, ShardedTensor]]]:
        """Of each weight that this rank has a share of, by number: of each tensor of its state, by name: the rectangles."""
        known, _ = extract_sharded_tensors_and_factories(model_sharded_state_dict)
        places = {place.data: place for place in nested_values(known)}
        return {
            number: {
                name: dict(enumerate(_rectangles_of(places[weight], f"optimizer.state.{name}", share, begin)))
                for name, share in self._state_of(weight).items()
            }
            for number, (weight, begin) in enumerate(self._shares())
        }

    def load_parameter_state_from_fully_reshardable(self, state_dict: dict[int, dict[str, dict[int, torch.Tensor]]]) -> None:
        """Take what was loaded into such rectangles; what was loaded in place stays there."""
        for number, (weight, _) in enumerate(self._shares()):
            for name, share in self._state_of(weight).items():
                loaded = state_dict[number][name]
                begin = 0
                for i in range(len(loaded)):
                    piece = loaded[i].reshape(-1)
                    share.narrow(0, begin, piece.numel()).copy_(piece)
                    begin += piece.numel()

    def _shares(self) -> Iterator[tuple[torch.nn.Parameter, int]]:
        """The weights that this rank has a share of, and at which of the weight's elements the share begins."""
        for by_type in self.gbuf_ranges:
            for buckets in by_type.values():
                for bucket in buckets:
                    for weight, ranges in bucket["param_map"].items():
                        yield weight, ranges["param"].start

    def _state_of(self, weight: torch.nn.Parameter) -> dict[str, torch.Tensor]:
        """This rank's share of the weight in fp32 and of its moments, each with one axis. Not torch Adam's count of steps."""
        tensors = self._get_main_param_and_optimizer_states(weight)
        return {name: tensor.detach() for name, tensor in tensors.items() if tensor.dim()}


def _rectangles_of(
    place: ShardedTensor | ShardedTensorFactory, prefix: str, share: torch.Tensor, begin: int
) -> Iterator[ShardedTensor]:
    """Where the share of a weight that begins at element `begin` belongs in the checkpoint. place: the weight's own."""
    end = begin + share.numel()
    for part in _parts(place):
        first = part.data.storage_offset()
        low, high = max(begin, first), min(end, first + part.data.numel())
        for at, shape in rectangles(tuple(part.data.shape), low - first, high - first):
            taken = share.narrow(0, low - begin, torch.Size(shape).numel())
            low += taken.numel()
            ones = (1,) * part.prepend_axis_num
            origin = part.global_offset
            yield ShardedTensor(
                key=f"{prefix}.{part.key}",
                data=taken.view(*ones, *shape),
                dtype=taken.dtype,
                local_shape=(*ones, *shape),
                global_shape=part.global_shape,
                global_offset=tuple(o + a for o, a in zip(origin, (*(0 for _ in ones), *at), strict=True)),
                axis_fragmentations=None,
                replica_id=(*part.replica_id[:-1], 0),  # every data-parallel rank has another share
                allow_shape_mismatch=part.allow_shape_mismatch,
            )


def _parts(place: ShardedTensor | ShardedTensorFactory) -> list[ShardedTensor]:
    """A weight's parts that lie apart in the checkpoint, as gate and up projection do; `data` has no memory, only its place."""
    if isinstance(place, ShardedTensor):
        return [replace(place, data=torch.empty(place.local_shape, device="meta"), dtype=torch.float32)]
    weight = torch.empty(place.data.shape, device="meta")
    return list(place.build_fn(place.key, weight, place.replica_id, place.flattened_range))


def rectangles(shape: tuple[int, ...], low: int, high: int) -> Iterator[Rectangle]:
    """The elements from low up to high of a tensor with one or two axes, in the order of memory, as rectangles."""
    if low >= high:
        return
    if len(shape) == 1:
        yield (low,), (high - low,)
        return
    _, columns = shape
    (row, column), (last, rest) = divmod(low, columns), divmod(high, columns)
    if row == last:
        yield (row, column), (1, rest - column)
        return
    if column:
        yield (row, column), (1, columns - column)
        row += 1
    if row < last:
        yield (row, 0), (last - row, columns)
    if rest:
        yield (last, 0), (1, rest)
