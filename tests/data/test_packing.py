"""The core's packing and sample order, against brute force in plain Python."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from latxa_megatron import _core


def slow_best_fit_decreasing(sizes: list[int], capacity: int) -> list[list[int]]:
    """Rows of sizes: from the largest on, each into the row with the least room that holds it."""
    rows: list[list[int]] = []
    for size in sorted(sizes, reverse=True):
        fitting = [row for row in rows if sum(row) + size <= capacity]
        if fitting:
            max(fitting, key=sum).append(size)
        else:
            rows.append([size])
    return rows


def pack(sizes: list[int], capacity: int) -> list[list[int]]:
    """Rows of item numbers."""
    offsets, items = _core.best_fit_decreasing(np.array(sizes, np.uint32), capacity)
    assert offsets[0] == 0
    assert offsets[-1] == len(items) == len(sizes)
    return [items[a:b].tolist() for a, b in pairwise(offsets)]


@st.composite
def packings(draw):
    capacity = draw(st.sampled_from([1, 2, 7, 63, 64, 65, 100, 4095, 4096, 4097, 8192]) | st.integers(1, 10_000))
    large = st.integers(max(1, capacity // 3), capacity)
    return draw(st.lists(st.integers(1, capacity) | large | st.just(capacity), max_size=80)), capacity


@settings(max_examples=300)
@given(packings())
@example(([], 5))
@example(([1] * 200, 64))
@example(([4096, 1, 4032, 64, 63, 4095], 4096))
def test_packing_is_best_fit_decreasing(case):
    sizes, capacity = case
    rows = pack(sizes, capacity)
    assert sorted(item for row in rows for item in row) == list(range(len(sizes)))  # every item once
    loads = [sum(sizes[item] for item in row) for row in rows]
    assert all(0 < load <= capacity for load in loads)
    # Rows of equal room are the same to the rule, so its rows are one multiset of loads.
    assert sorted(loads) == sorted(map(sum, slow_best_fit_decreasing(sizes, capacity)))


def test_items_keep_their_order_in_a_row():
    for row in pack([5, 1, 2, 5, 3, 1, 2, 8, 4], 8):
        assert row == sorted(row)


def test_many_items_in_a_capacity_of_several_summary_words():
    random = np.random.default_rng(5)
    sizes = np.minimum(random.lognormal(6, 1.2, 20_000).astype(int) + 1, 65536).tolist()
    rows = pack(sizes, 65536)
    assert sorted(item for row in rows for item in row) == list(range(len(sizes)))
    assert all(sum(sizes[item] for item in row) <= 65536 for row in rows)
    assert len(rows) == -(-sum(sizes) // 65536)  # small items fill every row but the last


@pytest.mark.parametrize("size", [0, 11, 2**32 - 1])
def test_a_size_that_no_row_holds_is_refused(size):
    with pytest.raises(ValueError, match="0 or larger than the capacity"):
        pack([3, size], 10)


@settings(max_examples=200)
@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
@example(1, 0)
@example(4, 1)
@example(5, 1)
@example(1024, 7)
@example(1025, 7)
def test_a_permutation_is_a_bijection(n, key):
    permutation = _core.Permutation(n, key)
    assert len(permutation) == n
    assert sorted(permutation[i] for i in range(n)) == list(range(n))
    assert permutation.images(n // 3, n).tolist() == [permutation[i] for i in range(n // 3, n)]
    with pytest.raises(IndexError):
        permutation[n]
    for first, last in ((0, n + 1), (n, n - 1)):
        with pytest.raises(IndexError):
            permutation.images(first, last)


@settings(max_examples=50)
@given(st.integers(2**20, 2**63), st.integers(0, 2**64 - 1), st.data())
def test_large_permutations_stay_inside_and_do_not_collide(n, key, data):
    permutation = _core.Permutation(n, key)
    places = data.draw(st.sets(st.integers(0, n - 1), min_size=2, max_size=50))
    images = {permutation[i] for i in places}
    assert len(images) == len(places)
    assert max(images) < n


def test_permutations_of_four_reach_every_order():
    """24 orders over 2400 keys: none is missing and none takes more than a quarter."""
    orders = Counter(tuple(_core.Permutation(4, key)[i] for i in range(4)) for key in range(2400))
    assert len(orders) == 24
    assert max(orders.values()) < 600


def test_a_permutation_shuffles():
    n = 10_000
    images = np.array([_core.Permutation(n, 3)[i] for i in range(n)])
    others = np.array([_core.Permutation(n, 4)[i] for i in range(n)])
    assert abs(np.corrcoef(np.arange(n), images)[0, 1]) < 0.05  # five standard deviations
    assert abs(np.corrcoef(images, others)[0, 1]) < 0.05
