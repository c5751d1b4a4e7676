"""Words against datatrove's normalization of a whole text; n-gram hashes against the n-grams themselves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latxa_megatron.data.cleaning.words import ngram_hashes, word_hashes, words

text = pytest.importorskip("datatrove.utils.text")


@given(st.text(st.sampled_from("aAñÑéü\u0301 ßİ.,;3７\n\t\u00a0\u2003zkΣ漢"), max_size=40) | st.text(max_size=40))
def test_words_are_those_of_the_whole_text_normalized(some):
    assert words(some) == text.simplify_text(some, text.TextNormConfig(norm_numbers=False)).split()


@given(st.lists(st.sampled_from(["bat", "bi", "hiru"]), max_size=30), st.integers(1, 13))
def test_ngrams_have_the_same_hash_where_they_are_the_same(some, n):
    ngrams = [tuple(some[i : i + n]) for i in range(len(some) - n + 1)]
    hashes = ngram_hashes(word_hashes(some), n).tolist()
    assert len(hashes) == len(ngrams)
    assert len(set(hashes)) == len(set(ngrams)) == len(set(zip(ngrams, hashes, strict=True)))
