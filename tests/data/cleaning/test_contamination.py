"""Overlap with evaluation items, worked out by hand."""

import json

import pytest

from latxa_megatron.data.sources import find
from latxa_megatron.errors import LatxaError
from tests.data.cleaning.cleaned import ONLY_AGAINST, Rules, clean, dropped, source

pytest.importorskip("datatrove")

LONG = "Zein da Euskal Herriko mendirik altuena eta zenbat metro ditu gailurrak itsasoaren mailatik gora"  # 14 words
QUESTION = "Nork idatzi zuen Gero liburua, eta zein urtetan?"  # 8 words
SHORT = "Zein da haizea neurtzeko tresna?"  # 5 words, and 3 of its candidates


@pytest.fixture
def sets(tmp_path):
    items = [
        {"question": LONG, "answer": 1},
        {"question": QUESTION, "candidates": ["Axularrek", "Etxeparek"], "answer": 0},
        {"question": SHORT, "candidates": ["Anemometroa", "Termometroa", "Barometroa"], "answer": 0},
        {"question": "Zein da hurrengo zenbakia?", "candidates": [f"{i}" for i in range(20)]},
    ]
    path = tmp_path / "trivia.jsonl"
    path.write_text("\n".join(json.dumps(item) for item in items) + "\n")
    return (find("trivia", [str(path)]),)


def words(text, start, end):
    return " ".join(text.split()[start:end])


CASES = {
    "13 words of an item": (f"Hara: {words(LONG, 1, 14)}!", (1, 13)),
    "13 words in other writing": (f"a. {words(LONG, 0, 13).upper().replace(' ', ', ')}: b", (1, 13)),
    "12 words of it": (f"Hara: {words(LONG, 1, 13)}!", None),
    "a whole question of 8 words": (f"Galdera: {QUESTION} Ez dakit.", (2, 8)),
    "7 words of it": (f"Galdera: {words(QUESTION, 0, 7)}, berriz", None),
    "a short question with its candidates": (f"{SHORT} Anemometroa, termometroa, barometroa...", (3, 8)),
    "a short question alone": (f"{SHORT} Anemometroa.", None),
    "the candidates' numbers": (" ".join(map(str, range(40))), None),
}


@pytest.mark.parametrize("name", CASES)
def test_overlap(name, tmp_path, sets):
    text, expected = CASES[name]
    clean(tmp_path / "out", [source(tmp_path, "eu", ["Kaixo.", text])], Rules(**ONLY_AGAINST, against=sets))
    found = dropped(tmp_path / "out")
    if expected is None:
        assert found == []
    else:
        assert [(d["line"], d["rule"], d["of"]["set"], d["of"]["line"], d["score"]) for d in found] == [
            (2, "contamination", "trivia", *expected)
        ]
        assert len(found[0]["words"].split()) == expected[1]


def test_the_report_counts_items(tmp_path, sets):
    told = clean(tmp_path / "out", [source(tmp_path, "eu", [QUESTION, QUESTION, LONG, "Kaixo."])], Rules(against=sets))
    trivia = told.against["trivia"]
    assert (trivia.items, trivia.short, trivia.found) == (4, 2, 2)
    assert told.sources["eu"].dropped["contamination"].records == 3
    assert told.sources["eu"].kept.records == 1


def test_conversations_count_with_all_of_their_turns(tmp_path, sets):
    turns = [{"role": "user", "content": words(LONG, 0, 7)}, {"role": "assistant", "content": words(LONG, 7, 14)}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    clean(tmp_path / "out", [find("chat", [str(tmp_path / "chat.jsonl")])], Rules(against=sets))
    assert [d["of"]["line"] for d in dropped(tmp_path / "out")] == [1]


def test_an_item_that_is_no_json(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"question": "Zer?"}\n{"question": \n')
    sets = (find("bad", [str(tmp_path / "bad.jsonl")]),)
    with pytest.raises(LatxaError, match=r"bad\.jsonl:2: the line is not valid JSON"):
        clean(tmp_path / "out", [source(tmp_path, "eu", ["Kaixo."])], Rules(against=sets))
    assert not list(tmp_path.glob("out*"))
