"""Exact duplicates against a dictionary, near duplicates against the Jaccard index of all pairs."""

import random

import pytest

from latxa_megatron.data.sources import find
from latxa_megatron.files import read_json
from tests.data.cleaning.cleaned import Rules, clean, dropped, dropped_lines, kept_lines, source
from tests.data.writers import write_jsonl

pytest.importorskip("datatrove")

WORDS = [f"{a}{b}{c}" for a in "bdgkz" for b in ("ai", "e", "o", "u") for c in ("n", "r", "tz", "k", "la")]


def document(rng, length=400):
    return [rng.choice(WORDS) for _ in range(length)]


def changed(rng, some, words):
    """A document with so many words replaced, one here and one there."""
    found = list(some)
    for i in rng.sample(range(len(found)), words):
        found[i] = "x" + rng.choice(WORDS)
    return found


def shingle_set(some):
    return {tuple(some[i : i + 5]) for i in range(len(some) - 4)}


def jaccard(a, b):
    return len(a & b) / len(a | b)


def first_alike(texts, threshold):
    """{number: (number of the first kept one, index)} by all pairs."""
    sets = [shingle_set(some) for some in texts]
    kept, found = [], {}
    for i, own in enumerate(sets):
        alike = [(j, jaccard(own, sets[j])) for j in kept if jaccard(own, sets[j]) >= threshold]
        if alike:
            found[i] = alike[0]
        else:
            kept.append(i)
    return found


def texts_with_copies(seed):
    """Documents, some nearly as an earlier one (one or two words of 400 differ), some far from it (60 or 90)."""
    rng = random.Random(seed)
    texts = [document(rng) for _ in range(60)]
    for _ in range(60):
        texts.append(changed(rng, rng.choice(texts[:60]), rng.choice([1, 2, 60, 90])))
    rng.shuffle(texts)
    return texts


@pytest.mark.parametrize("seed", [1, 2])
def test_near_duplicates_are_those_of_all_pairs(tmp_path, seed):
    texts = texts_with_copies(seed)
    expected = first_alike(texts, 0.8)
    assert 10 < len(expected) < 60
    sets = [shingle_set(some) for some in texts]
    indices = [jaccard(a, b) for i, a in enumerate(sets) for b in sets[:i]]
    assert not any(0.75 < index < 0.85 for index in indices)  # clear cases, on both sides
    clean(tmp_path / "out", [source(tmp_path, "eu", map(" ".join, texts))], Rules(exact=False))
    found = {d["line"] - 1: (d["of"]["line"] - 1, d["score"]) for d in dropped(tmp_path / "out")}
    assert found == {i: (j, pytest.approx(index, abs=1e-4)) for i, (j, index) in expected.items()}


def test_a_chain_drops_what_is_like_a_kept_text_only(tmp_path):
    """b is like a, and c is like b but not like a: b goes and c stays."""
    a = document(random.Random(5))
    b = [f"p{i}" for i in range(30)] + a[30:]
    c = b[:-30] + [f"q{i}" for i in range(30)]
    sets = [shingle_set(some) for some in (a, b, c)]
    assert min(jaccard(sets[0], sets[1]), jaccard(sets[1], sets[2])) > 0.85
    assert jaccard(sets[0], sets[2]) < 0.75
    clean(tmp_path / "out", [source(tmp_path, "eu", map(" ".join, (a, b, c)))], Rules())
    assert dropped_lines(tmp_path / "out", "near") == [2]


def test_exact_duplicates_are_those_of_a_dictionary(tmp_path):
    """Within a source and over sources; what differs in a space is another text."""
    rng = random.Random(3)
    texts = [rng.choice(["kaixo", "kaixo ", "agur", "", "bai\n", "ez"]) + rng.choice(["", "!", "1"]) for _ in range(80)]
    a, b = texts[:50], texts[50:]
    clean(tmp_path / "out", [source(tmp_path, "a", a), source(tmp_path, "b", b)], Rules(near=None))
    first, expected = {}, []
    for name, some in (("a", a), ("b", b)):
        for line, text in enumerate(some, 1):
            if text in first:
                expected.append((name, line, *first[text]))
            first.setdefault(text, (name, line))
    found = [(d["source"], d["line"], d["of"]["source"], d["of"]["line"]) for d in dropped(tmp_path / "out")]
    assert found == expected
    assert {d["score"] for d in dropped(tmp_path / "out")} == {1.0}


def test_conversations_that_differ_in_what_they_call_are_two(tmp_path):
    calls = [[{"function": {"name": "ordua", "arguments": {"hiria": hiria}}}] for hiria in ("Oñati", "Bergara", "Oñati")]
    turns = [[{"role": "user", "content": "Ordua?"}, {"role": "assistant", "content": "", "tool_calls": each}] for each in calls]
    path = write_jsonl(tmp_path / "chat.jsonl", [{"messages": each} for each in turns])
    clean(tmp_path / "out", [find("chat", [str(path)])], Rules(near=None))
    assert dropped_lines(tmp_path / "out", "exact") == [3]


def test_near_duplicates_are_not_found_through_exact_ones(tmp_path):
    rng = random.Random(4)
    a = document(rng)
    texts = [a, a, changed(rng, a, 1), a]
    clean(tmp_path / "out", [source(tmp_path, "eu", map(" ".join, texts))], Rules())
    assert [(d["line"], d["rule"], d["of"]["line"]) for d in dropped(tmp_path / "out")] == [
        (2, "exact", 1),
        (3, "near", 1),
        (4, "exact", 1),
    ]


def test_the_same_for_any_number_of_workers(tmp_path, chunk_bytes):
    """Several tasks, of which one is all dropped; two workers write the same bytes as one."""
    chunk_bytes(50_000)
    texts = [" ".join(some) for some in texts_with_copies(6)]
    sources = [source(tmp_path, "a", texts), source(tmp_path, "b", texts[:7])]
    for out, workers in (("one", 1), ("two", 2)):
        clean(tmp_path / out, sources, Rules(), workers=workers)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(names) > 5
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)
    assert kept_lines(tmp_path / "one", "b") == []
    assert read_json(tmp_path / "one" / "report.json")["sources"]["b"]["dropped"]["exact"]["records"] == 7


def test_a_long_text_is_signed_in_blocks(monkeypatch):
    from latxa_megatron.data.cleaning import signatures

    hashes = signatures.shingles(document(random.Random(7), 500)).reshape(-1, 1)
    signer = signatures._Signatures("unused", signatures._config(0.8), language=signatures.WhitespaceTokenizer())
    whole = signer.get_signature(hashes)
    assert whole == signatures.MinhashDedupSignature.get_signature(signer, hashes)
    monkeypatch.setattr(signatures, "_BLOCK", 7)
    assert signer.get_signature(hashes) == whole


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 0.99, 1.0])
def test_buckets_find_pairs_at_the_threshold(threshold):
    from latxa_megatron.data.cleaning.signatures import buckets

    count, rows = buckets(threshold)
    assert count * rows <= 128
    assert 1 - (1 - threshold**rows) ** count >= 0.95
