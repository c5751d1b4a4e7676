"""NEFTune's noise: its size, and that it depends on the sample alone."""

import math

import pytest
import torch

from latxa_megatron.model.neftune import Neftune

CPU = torch.device("cpu")


def begun(samples: list[int], borders: list[int], **settings) -> Neftune:
    noise = Neftune(5.0, 33, **settings)
    noise.begin(samples, torch.tensor(borders, dtype=torch.int32), torch.arange(borders[-1]))
    return noise


def test_uniform_and_of_the_papers_size():
    found = begun([7], [0, 300, 512]).noise(256, CPU)
    size = 5 / math.sqrt(512 * 256)
    assert found.shape == (1, 512, 256)
    assert found.abs().max() <= size
    assert found.abs().max() > 0.999 * size
    assert float(found.mean()) == pytest.approx(0, abs=size / 100)
    assert float(found.std()) == pytest.approx(size / math.sqrt(3), rel=0.01)  # of U(-1, 1)


def test_a_documents_own_length():
    """Documents of 4 and 12 positions: noise of the same draw, 2 and sqrt(4/3) times that of the sample's 16."""
    packed = begun([7], [0, 4, 16]).noise(8, CPU)
    own = begun([7], [0, 4, 16], length="document").noise(8, CPU)
    assert torch.allclose(own[0, :4], packed[0, :4] * 2)
    assert torch.allclose(own[0, 4:], packed[0, 4:] * math.sqrt(16 / 12))


def test_a_samples_noise_is_its_own():
    both = begun([3, 8], [0, 16, 32]).noise(8, CPU)
    alone = begun([8], [0, 16]).noise(8, CPU)
    assert torch.equal(both[1], alone[0])
    assert not torch.equal(both[0], both[1])
    assert torch.equal(begun([8], [0, 16]).noise(8, CPU), alone)


@pytest.mark.parametrize("places", [range(16), [0, 1, 5, 5, 8, 9, 14, 15]])
@pytest.mark.parametrize("tp", [1, 2])
def test_each_position_gets_its_samples_noise(places, tp, monkeypatch):
    """What a rank's hook adds, [t, 1, hidden], against noise() of [samples, positions, hidden]."""
    noise = Neftune(5.0, 33)
    noise.begin([3, 8], torch.tensor([0, 6, 8, 16], dtype=torch.int32), torch.tensor(places))
    whole = noise.noise(4, CPU)
    expected = torch.stack([whole[place // 8, place % 8] for place in places])[:, None]
    rows = len(places) // tp
    for rank in range(tp):
        monkeypatch.setattr("megatron.core.parallel_state.get_tensor_model_parallel_rank", lambda rank=rank: rank)
        out = torch.zeros(rows, 1, 4, dtype=torch.bfloat16)
        assert torch.equal(noise._here(out), expected[rank * rows : (rank + 1) * rows].bfloat16())
