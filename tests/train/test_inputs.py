"""A context-parallel rank's share of a batch: all shares together are the batch, and padding is trained on nowhere."""

import itertools

import numpy as np
import pytest
import torch

from latxa_megatron.data.dataset import PackedDataset
from latxa_megatron.train.inputs import padded_length, share


@pytest.fixture
def dataset(tiny_run):
    return PackedDataset(tiny_run.root / "plan")


@pytest.fixture(params=[2, 4])
def shares_of(request, monkeypatch):
    """The shares of all ranks of a context-parallel group."""
    cp = request.param

    def find(dataset, samples):
        monkeypatch.setattr("megatron.core.parallel_state.get_context_parallel_world_size", lambda: cp)
        monkeypatch.setattr("megatron.core.parallel_state.get_tensor_model_parallel_world_size", lambda: 1)
        found = []
        for rank in range(cp):
            monkeypatch.setattr("megatron.core.parallel_state.get_context_parallel_rank", lambda rank=rank: rank)
            found.append(share(dataset.batch(samples), padded_length(dataset) * len(samples)))
        return found

    return find


def test_every_trained_position_is_in_one_share(dataset, shares_of):
    batch = dataset.batch([3, 0])
    trained = torch.zeros(batch.tokens.numel())
    for own in shares_of(dataset, [3, 0]):
        trained.index_add_(0, own.places, own.loss_mask)
        for values in (batch.tokens, batch.labels, batch.position_ids, batch.sources):
            assert torch.equal(own.of(values), values.view(-1)[own.places])
    assert torch.equal(trained, batch.loss_mask.view(-1))


def test_documents_are_whole_and_in_order(dataset, shares_of):
    """Padded documents put together again from the shares' pieces: the document, then its last position again and again."""
    batch, shares = dataset.batch([5]), shares_of(dataset, [5])
    cp, borders = len(shares), shares[0].borders.tolist()
    assert borders[-1] == cp * len(shares[0].places)
    for i, (start, end) in enumerate(itertools.pairwise(borders)):
        own = [each.places[start // cp : end // cp] for each in shares]
        half = len(own[0]) // 2
        places = torch.cat([each[:half] for each in own] + [each[half:] for each in own[::-1]]).tolist()
        if i < len(batch.cu_seqlens) - 1:
            first, last = batch.cu_seqlens[i : i + 2].tolist()
            assert places[: last - first] == list(range(first, last))
            assert set(places[last - first :]) <= {last - 1}
            assert len(places) - (last - first) < 2 * cp
        else:
            assert i == len(batch.cu_seqlens) - 1


def test_padded_length_fits_the_most_padded_sample(dataset):
    longest = 0
    for sample in range(len(dataset)):
        lengths = dataset.batch([sample]).cu_seqlens.diff().numpy()
        longest = max(longest, int((np.ceil(lengths / 8) * 8).sum()))
    assert dataset.longest_padded(8) == longest


def test_no_sample_has_more_documents(dataset):
    counts = [len(dataset.batch([sample]).cu_seqlens) - 1 for sample in range(len(dataset))]
    assert max(counts) <= dataset.most_documents() <= max(counts) + 1
