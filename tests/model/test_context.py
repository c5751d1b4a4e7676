"""Which positions a context-parallel rank holds, by hand and by brute force."""

import itertools

import pytest
import torch

from latxa_megatron.model.context import own_positions


def test_first_and_last_piece_of_each_document():
    """Documents of 8 and 4 positions over two ranks: pieces 0 and 3 of four for the first, 1 and 2 for the second."""
    borders = torch.tensor([0, 8, 12], dtype=torch.int32)
    assert own_positions(borders, 2, 0).tolist() == [0, 1, 6, 7, 8, 11]
    assert own_positions(borders, 2, 1).tolist() == [2, 3, 4, 5, 9, 10]


@pytest.mark.parametrize("cp", [1, 2, 4])
def test_each_position_has_one_rank_and_ranks_have_equal_work(cp):
    lengths = torch.tensor([24, 8, 64, 16, 8])
    borders = torch.cat([torch.zeros(1), lengths.cumsum(0)]).int()
    shares = [own_positions(borders, cp, rank).tolist() for rank in range(cp)]
    assert sorted(itertools.chain(*shares)) == list(range(120))
    start = torch.repeat_interleave(borders[:-1], lengths)
    work = [sum(position - int(start[position]) + 1 for position in share) for share in shares]  # keys that each query sees
    assert len(set(work)) == 1
