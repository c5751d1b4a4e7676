"""Context parallelism: which positions of packed documents each rank holds.

A document is cut into 2 cp equal pieces, and rank r holds pieces r and 2 cp - 1 - r: early positions attend to few others, late
ones to many, so that all ranks have the same work. Transformer Engine expects this order.
"""

import torch
from torch import Tensor


def own_positions(borders: Tensor, cp: int, rank: int) -> Tensor:
    """The positions that rank `rank` of `cp` holds, int64, in its order.

    borders: those of the documents, from 0 to the last one's end; their lengths divide by 2 cp, or by 1 where cp is 1.
    """
    borders = borders.long()
    lengths = borders.diff()
    if cp == 1:
        return torch.arange(int(borders[-1]))
    start, length = (torch.repeat_interleave(each, lengths) for each in (borders[:-1], lengths))
    position = torch.arange(int(borders[-1]))
    piece = (position - start) // (length // (2 * cp))
    return position[torch.minimum(piece, 2 * cp - 1 - piece) == rank]
