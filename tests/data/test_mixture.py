"""How often documents are seen, in which order, and how evenly their sources are spread, over random mixtures."""

import math
import tempfile
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latxa_megatron.data import packing
from latxa_megatron.data.dataset import PackedDataset
from latxa_megatron.data.inspect import exposure
from latxa_megatron.data.mixture import Mix, with_weights
from latxa_megatron.data.packing import pack
from latxa_megatron.data.plan import PackPlan
from latxa_megatron.errors import LatxaError
from latxa_megatron.weight import Weight
from tests.data.test_plan import SHARDS, labels, numbered_stores

EPOCHS = st.sampled_from([0.3, 0.5, 1.0, 1.5, 2.0, 2.25, 3.0, 4.0, 10 / 3])


@st.composite
def mixtures(draw):
    """Stores of shards of document lengths, and the epochs of their sources."""
    stores = draw(st.lists(SHARDS, min_size=1, max_size=2))
    return stores, [{source: draw(EPOCHS) for source in sorted({s for s, _ in shards})} for shards in stores]


def gathered(plan: PackPlan) -> list[set[int]]:
    """For each sample the first label of each document in it, by which a document of numbered tokens is told."""
    dataset = PackedDataset(plan.directory)
    batches = [dataset.batch([i]) for i in range(len(dataset))]
    return [set(b.labels[0][b.loss_mask[0] == 1].tolist()) for b in batches]


@settings(max_examples=150)
@given(mixture=mixtures(), seq_length=st.integers(1, 24), seed=st.integers(0, 5), data=st.data())
def test_every_trained_token_is_seen_as_often_as_its_epochs_say(mixture, seq_length, seed, data):
    """And the plan's count of how often each document is seen is that of the gathered samples, also in windows and streams."""
    stores, epochs = mixture
    kind = data.draw(st.sampled_from(["best_fit", "concat"]))
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "WINDOW", data.draw(st.sampled_from([1, 5, 1 << 23])))
        written = numbered_stores(Path(directory), [[("once", [2]), *shards] for shards in stores])
        mixes = [Mix(Path(directory, str(i)), of_store) for i, of_store in enumerate(epochs)]
        plan = pack(Path(directory, "plan"), mixes, seq_length=seq_length, seed=seed, packing=kind)
        found = labels(plan.directory)
        seen = plan.times_seen()
        whole: Counter = Counter()
        for s, shards in enumerate(written):
            more: Counter = Counter()
            visible: Counter = Counter()
            for h, (source, documents) in enumerate(shards):
                for d, ids in enumerate(documents):
                    assert {found[token] for token in ids[1:]} <= {seen[s][h][d]}  # a document whole or not at all
                    if len(ids) > 1:
                        visible[source] += 1
                        more[source] += int(seen[s][h][d]) - math.floor(epochs[s].get(source, 1))
                        assert 0 <= int(seen[s][h][d]) - math.floor(epochs[s].get(source, 1)) <= 1
                    else:
                        assert seen[s][h][d] == 0
                whole[source] += sum(int(n) for n in seen[s][h])
            for source, count in visible.items():
                part = Fraction(epochs[s].get(source, 1)) - math.floor(epochs[s].get(source, 1))
                assert more[source] == round(part * count)
        assert sum(found.values()) == sum((plan.slices["length"].astype(int) - 1)[a:b].sum() for a, b in rows_read(plan))
        shown = exposure(plan)
        assert {name: sum(n * count for n, count in of.times.items()) for name, of in shown.items()} == whole
        assert sum(of.share for of in shown.values()) == pytest.approx(1)


def rows_read(plan: PackPlan) -> list[tuple[int, int]]:
    """The slices of each sample's row."""
    rows = [plan.row(i) for i in range(len(plan))]
    return [(int(plan.row_offsets[r]), int(plan.row_offsets[r + 1])) for r in rows]


@settings(max_examples=80)
@given(mixture=mixtures(), seed=st.integers(0, 5), kind=st.sampled_from(["best_fit", "concat"]))
def test_a_document_is_seen_again_only_when_its_source_was_seen_whole(mixture, seed, kind):
    stores, epochs = mixture
    with tempfile.TemporaryDirectory() as directory:
        written = numbered_stores(Path(directory), [[("once", [2]), *shards] for shards in stores])
        mixes = [Mix(Path(directory, str(i)), of_store) for i, of_store in enumerate(epochs)]
        plan = pack(Path(directory, "plan"), mixes, seq_length=16, seed=seed, packing=kind)
        samples = gathered(plan)
        for shards in written:
            for source in {s for s, _ in shards}:
                marks = {ids[1] for s, documents in shards if s == source for ids in documents if len(ids) > 1}
                times: Counter = Counter(dict.fromkeys(marks, 0))
                for sample in samples:
                    times.update(sample & marks)
                    assert max(times.values(), default=0) - min(times.values(), default=0) <= 1


def test_sources_of_unequal_epochs_are_spread_evenly(tmp_path):
    """Documents of one length: in each eighth of the run each source has the share of the tokens that it has overall."""
    sizes = {"help": 600, "classics": 2000, "half": 800}
    epochs = {"help": 4.0, "classics": 1.0, "half": 2.5}
    numbered_stores(tmp_path, [[(name, [9] * (count // 2)) for name, count in sizes.items() for _ in range(2)]])
    plan = pack(tmp_path / "plan", [Mix(tmp_path / "0", epochs)], seq_length=32, seed=3)
    names = [name for name in sizes for _ in range(2)]
    overall = {name: epochs[name] * sizes[name] for name in sizes}
    reads = rows_read(plan)
    for eighth in range(8):
        window = reads[len(reads) * eighth // 8 : len(reads) * (eighth + 1) // 8]
        found = Counter(names[h] for a, b in window for h in plan.slices["shard"][a:b].tolist())
        for name, count in overall.items():
            assert found[name] / found.total() == pytest.approx(count / sum(overall.values()), abs=0.05)
    # What a pass has is no matter of chance: the same share to within a document.
    for p in plan.manifest["passes"]:
        first, last = plan.row_offsets[p["first_row"]], plan.row_offsets[p["first_row"] + p["rows"]]
        found = Counter(names[h] for h in plan.slices["shard"][first:last].tolist())
        run = found["help"] / overall["help"]
        assert all(abs(found[name] - run * overall[name]) < 5 for name in names)


def test_epochs_of_4_and_1_show_another_quarter_in_each_quarter(tmp_path):
    numbered_stores(tmp_path, [[("four", [5] * 20), ("one", [5] * 100)]])
    plan = pack(tmp_path / "plan", [Mix(tmp_path / "0", {"four": 4.0})], seq_length=8, seed=1)
    quarters = []
    for p in plan.manifest["passes"]:
        slices = plan.slices[plan.row_offsets[p["first_row"]] : plan.row_offsets[p["first_row"] + p["rows"]]]
        assert sorted(slices["document"][slices["shard"] == 0].tolist()) == list(range(20))
        quarters.append(slices["document"][slices["shard"] == 1].tolist())
    assert [len(quarter) for quarter in quarters] == [25] * 4
    assert sorted(document for quarter in quarters for document in quarter) == list(range(100))
    assert max(quarters[0]) - min(quarters[0]) > 50  # drawn by the seed, not the first of them


def test_passes_that_show_the_same_share_their_rows(tmp_path):
    numbered_stores(tmp_path, [[("eu", [5, 9, 2, 8] * 5), ("en", [6, 3] * 10)]])
    once = pack(tmp_path / "once", [Mix(tmp_path / "0", {})], seq_length=8, seed=1)
    for kind in ("best_fit", "concat"):
        plans = [
            pack(tmp_path / f"{kind}{e}", [Mix(tmp_path / "0", {"eu": e, "en": e})], seq_length=8, seed=1, packing=kind)
            for e in (1.0, 3.0)
        ]
        assert len(plans[1].manifest["passes"]) == 3
        for name in ("rows.bin", "slices.bin"):
            assert (plans[0].directory / name).read_bytes() == (plans[1].directory / name).read_bytes()
    alternating = pack(tmp_path / "alternating", [Mix(tmp_path / "0", {"eu": 4.0, "en": 2.0})], seq_length=8, seed=1)
    first_rows = [p["first_row"] for p in alternating.manifest["passes"]]
    assert first_rows[0] == first_rows[2] != first_rows[1] == first_rows[3]  # one half of en, then the other, then again
    assert len(once.slices) == 40


@settings(max_examples=60)
@given(lengths=st.lists(st.integers(1, 40), min_size=2, max_size=20), seq_length=st.integers(1, 24), window=st.integers(1, 30))
def test_concat_fills_every_row_of_a_pass_but_the_last(lengths, seq_length, window):
    lengths = [*lengths, 2]
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "WINDOW", window)
        numbered_stores(Path(directory), [[("eu", lengths[::2]), ("eu", lengths[1::2])]])
        mixes = [Mix(Path(directory, "0"), {"eu": 2.0})]
        plan = pack(Path(directory, "plan"), mixes, seq_length=seq_length, seed=2, packing="concat")
        positions = sum(n - 1 for n in lengths)
        filled = [int((plan.slices["length"][a:b].astype(int) - 1).sum()) for a, b in zip(*rows_of(plan), strict=True)]
        assert filled[:-1] == [seq_length] * (len(filled) - 1)
        assert sum(filled) == positions
        # In the stream each document stands whole: its pieces follow each other, the next begins with the last's last token.
        places = [(int(s["shard"]), int(s["document"])) for s in plan.slices]
        assert len({p for i, p in enumerate(places) if i == 0 or places[i - 1] != p}) == len(
            [i for i, p in enumerate(places) if i == 0 or places[i - 1] != p]
        )
        for before, after in zip(plan.slices[:-1], plan.slices[1:], strict=True):
            if after["start"]:
                assert after["start"] == before["start"] + before["length"] - 1


def rows_of(plan):
    return plan.row_offsets[:-1].tolist(), plan.row_offsets[1:].tolist()


def test_concat_takes_documents_in_the_seeds_order(tmp_path):
    numbered_stores(tmp_path, [[("eu", [6] * 50)]])
    orders = []
    for seed in (1, 2):
        plan = pack(tmp_path / f"plan{seed}", [Mix(tmp_path / "0", {})], seq_length=8, seed=seed, packing="concat")
        assert plan.manifest["packing"] == "concat"
        orders.append(list(dict.fromkeys(plan.slices["document"].tolist())))
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(50))
    assert orders[0] != orders[1]
    assert list(range(50)) not in orders
    with pytest.raises(LatxaError, match="holds a plan of other inputs"):
        pack(tmp_path / "plan1", [Mix(tmp_path / "0", {})], seq_length=8, seed=1)


def test_a_window_is_a_part_of_every_shard(tmp_path, monkeypatch):
    """4 windows over 2 shards: rows mix both shards, and lose less than a row each."""
    monkeypatch.setattr(packing, "WINDOW", 60)
    numbered_stores(tmp_path, [[("eu", [4] * 100), ("en", [6] * 100)]])
    plan = pack(tmp_path / "plan", [Mix(tmp_path / "0", {})], seq_length=80, seed=1)
    assert labels(plan.directory) == Counter({t: 1 for d in range(100) for t in [*range(4 * d + 2, 4 * d + 5)]}) + Counter(
        {401 + 6 * d + t: 1 for d in range(100) for t in range(1, 6)}
    )
    mixed = [set(plan.slices["shard"][a:b].tolist()) for a, b in zip(*rows_of(plan), strict=True)]
    assert sum(len(shards) == 2 for shards in mixed) >= 4
    assert len(plan) <= -(-100 * (3 + 5) // 80) + 4


@pytest.mark.parametrize(
    ("text", "amount", "is_share"),
    [
        ("500M", 500_000_000, False),
        ("2.5e9", 2_500_000_000, False),
        ("2.5B", 2_500_000_000, False),
        (1.5e12, 1_500_000_000_000, False),
        ("1", 1, False),
        (4_200_000_000, 4_200_000_000, False),
        ("30%", Fraction(3, 10), True),
        ("0.3", Fraction(3, 10), True),
        (0.3, Fraction(3, 10), True),
        (".5 %", Fraction(1, 200), True),
        ("1e-3", Fraction(1, 1000), True),
    ],
)
def test_weights_are_tokens_or_shares(text, amount, is_share):
    assert Weight.parse(text) == Weight(Fraction(amount), is_share)


@pytest.mark.parametrize(
    "text", ["", "0", "0%", "100%", "120%", "-1", "-5%", "many", "5X", "nan", "inf", "0.0001K", "1e999", "5 5"]
)
def test_what_is_no_weight_is_refused(text):
    with pytest.raises(LatxaError, match="a weight is a number of tokens"):
        Weight.parse(text)


@pytest.fixture
def two_stores(tmp_path):
    """400 tokens of eu and 100 of chat; 100 more of eu in another store, and 200 of en."""
    numbered_stores(tmp_path, [[("eu", [10] * 40), ("chat", [5] * 20)], [("eu", [10] * 10), ("en", [10] * 20)]])
    return [Mix(tmp_path / "0", {"eu": 2.0, "chat": 3.0}), Mix(tmp_path / "1", {})]


def weighted(mixture, **weights):
    return [mix.epochs for mix in with_weights(mixture, {name: Weight.parse(text) for name, text in weights.items()})]


def test_a_number_of_tokens_becomes_epochs(two_stores):
    assert weighted(two_stores, chat="150") == [{"eu": 2.0, "chat": 1.5}, {}]
    assert weighted(two_stores, eu="1500") == [{"eu": 3.0, "chat": 3.0}, {"eu": 3.0}]


def test_shares_are_of_all_tokens_and_leave_the_rest_to_the_others(two_stores, tmp_path):
    # eu: 2 x 400 + 1 x 100, en: 200; with 50% for chat there are 1100 more
    assert weighted(two_stores, chat="50%") == [{"eu": 2.0, "chat": 11.0}, {}]
    # chat: 3 x 100; en 25% and eu 0.5 of 1200 in all
    mixture = with_weights(two_stores, {"en": Weight.parse("25%"), "eu": Weight.parse(0.5)})
    assert [mix.epochs for mix in mixture] == [{"eu": 1.2, "chat": 3.0}, {"en": 1.5, "eu": 1.2}]
    plan = pack(tmp_path / "plan", mixture, seq_length=16, seed=1)
    found = exposure(plan)
    assert {name: round(of.share, 6) for name, of in found.items()} == {"eu": 0.5, "chat": 0.25, "en": 0.25}
    assert found["en"].times == {1: 10, 2: 10}
    assert found["eu"].epochs == pytest.approx(1.2)
    # a share beside a number of tokens: eu 1500 and chat 300 are three quarters
    assert weighted(two_stores, en="25%", eu="1500")[1]["en"] == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"es": "30%"}, "weight of 'es': there is no such source; there are chat, eu, en"),
        ({"eu": "60%", "en": "40%"}, "the shares sum up to 100%"),
        ({"eu": "60%", "en": "20%", "chat": "10%"}, "each source has a share"),
        ({"chat": "2"}, "weight of 'chat': 2 tokens of 100 in 20 documents is not one document"),
    ],
)
def test_weights_that_cannot_be_are_refused(weights, message, two_stores):
    with pytest.raises(LatxaError, match=message):
        weighted(two_stores, **weights)


def test_too_many_passes_are_refused(tmp_path):
    numbered_stores(tmp_path, [[("eu", [5])]])
    with pytest.raises(LatxaError, match="sum up to more than 65536"):
        pack(tmp_path / "plan", [Mix(tmp_path / "0", {"eu": 1e6})], seq_length=8, seed=1)
