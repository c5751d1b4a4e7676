"""Context parallelism's order of positions against Transformer Engine's own."""

import pytest
import torch

from latxa_megatron.model.context import own_positions

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("one_process")]


@pytest.mark.parametrize("cp", [2, 4])
def test_positions_are_those_that_transformer_engine_expects(cp):
    import transformer_engine_torch as tex

    lengths = torch.tensor([64, 8, 256, 16, 40])
    borders = torch.cat([torch.zeros(1), lengths.cumsum(0)]).int()
    for rank in range(cp):
        expected = tex.thd_get_partitioned_indices(borders.cuda(), int(borders[-1]), cp, rank)
        assert torch.equal(own_positions(borders, cp, rank), expected.long().cpu())
