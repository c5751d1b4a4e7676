"""What stays is as it was and a build takes it; languages; bad input leaves nothing behind."""

import gzip
import json

import pytest

from latxa_megatron.data.build import build_store
from latxa_megatron.data.sources import find
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import read_json
from tests.data.cleaning.cleaned import Rules, clean, dropped, dropped_lines, kept_lines, source
from tests.data.samples import contents

pytest.importorskip("datatrove")

BASQUE = ["Gaur eguraldi ona egin du mendian.", "Haurrak eskolara joan dira goizean, eta arratsaldean itzuliko dira."]
SPANISH = ["El tiempo ha sido bueno hoy en el monte.", "Los niños han ido a la escuela por la mañana y volverán por la tarde."]
ENGLISH = ["The weather on the mountain was fine today.", "The children went to school this morning and will be back tonight."]


def test_lines_stay_as_they_are(tmp_path):
    """Spaces, order of keys, escapes, other fields, line ends; blank lines count, a last line without its end gets one."""
    lines = [
        b'{"id": 7,  "text": "Kaixo", "url": "x"}\r\n',
        b"\n",
        b'{"text":"ka\\u00f1a \xc3\xb1", "meta": {"b": 1, "a": [2]}}\n',
        b'{"text": "Kaixo", "id": "again"}\n',
        b'{"messages": [{"role": "user", "content": "Zer?"}, {"role": "assistant", "content": "Hau."}], "n": 1.0}\n',
        b'{"conversations": [{"from": "human", "value": "Zer?"}, {"from": "gpt", "value": "Hau."}]}\n',
        b'{"text": "azkena"}',
    ]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"".join(lines)))
    told = clean(tmp_path / "out", [find("a", [str(tmp_path / "a.jsonl.gz")])], Rules())
    assert kept_lines(tmp_path / "out", "a") == [lines[0], lines[2], lines[4], lines[6] + b"\n"]
    file = str(tmp_path / "a.jsonl.gz")
    assert dropped(tmp_path / "out") == [
        {"source": "a", "file": file, "line": 4, "id": "again", "rule": "exact", "score": 1.0}
        | {"of": {"source": "a", "file": file, "line": 1}},
        {"source": "a", "file": file, "line": 6, "rule": "exact", "score": 1.0}
        | {"of": {"source": "a", "file": file, "line": 5}},
    ]
    counts = told.sources["a"]
    assert (counts.read.records, counts.kept.records, counts.dropped["exact"].records) == (6, 4, 2)
    assert counts.dropped["exact"].bytes == len(lines[3]) + len(lines[5])
    assert counts.read.bytes == counts.kept.bytes + counts.dropped["exact"].bytes
    assert read_json(tmp_path / "out" / "report.json") == json.loads(json.dumps(told.as_json()))


def test_lines_are_numbered_through_the_chunks_of_a_file(tmp_path, chunk_bytes):
    chunk_bytes(64)
    texts = [f"{i % 10}. dokumentua" for i in range(30)]
    out = tmp_path / "out"
    clean(out, [source(tmp_path, "a", texts)], Rules())
    assert [(d["line"], d["of"]["line"]) for d in dropped(out)] == [(i, (i - 1) % 10 + 1) for i in range(11, 31)]
    assert [json.loads(line)["text"] for line in kept_lines(out, "a")] == texts[:10]


def test_a_build_takes_what_stays(tmp_path, byte_tokenizer):
    sources = [source(tmp_path, "eu", ["Kaixo.", "Agur.", "Kaixo."]), source(tmp_path, "eu_es", ["Agur.", "Hola."])]
    clean(tmp_path / "out", sources, Rules())
    found = [find(name, [str(tmp_path / "out" / f"{name}-*.jsonl.zst")]) for name in ("eu", "eu_es")]
    totals = build_store(tmp_path / "store", byte_tokenizer, found).totals()
    assert {name: each.documents for name, each in totals.items()} == {"eu": 2, "eu_es": 1}


def test_languages(tmp_path):
    """Each source its own; a text without letters is in none."""
    sources = [
        source(tmp_path, "eu", [*BASQUE, *SPANISH, *ENGLISH, "123 456", ""]),
        source(tmp_path, "both", [*BASQUE, *SPANISH, *ENGLISH]),
        source(tmp_path, "any", [*SPANISH, "789"]),
    ]
    rules = Rules(exact=False, near=None, languages={"eu": ("eu",), "both": ("en", "es")})
    clean(tmp_path / "out", sources, rules)
    found = [(d["source"], d["line"], d["language"]) for d in dropped(tmp_path / "out")]
    assert found[:4] == [("eu", 3, "es"), ("eu", 4, "es"), ("eu", 5, "en"), ("eu", 6, "en")]
    assert [each[:2] for each in found[4:]] == [("eu", 7), ("eu", 8), ("both", 1), ("both", 2)]
    assert [each[2] for each in found[6:]] == ["eu", "eu"]
    assert all(d["rule"] == "language" and d["score"] < 0.5 for d in dropped(tmp_path / "out"))


def test_a_long_text_is_judged_by_all_of_it(tmp_path):
    """A title page in another language does not decide."""
    text = " ".join([*SPANISH, *BASQUE * 40])
    assert len(text) > 4000
    clean(tmp_path / "out", [source(tmp_path, "eu", [text])], Rules(languages={"eu": ("eu",)}))
    assert dropped(tmp_path / "out") == []


def test_what_a_killed_run_left_is_cleared(tmp_path):
    sources = [source(tmp_path, "a", ["bat", "bi", "bat"])]
    clean(tmp_path / "whole", sources, Rules())
    (tmp_path / "out.partial" / "scratch").mkdir(parents=True)
    (tmp_path / "out.partial" / "a-00007.jsonl.zst").write_bytes(b"half")
    clean(tmp_path / "out", sources, Rules())
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()


def test_bad_lines(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "bat"}\n{"text": 1}\nbi\n{"text": "bat"}\n')
    sources = [find("a", [str(tmp_path / "a.jsonl")])]
    for workers in (1, 2):
        with pytest.raises(LatxaError, match=r"a\.jsonl:2: the object has neither a string 'text' nor"):
            clean(tmp_path / "out", sources, Rules(), workers=workers)
    assert not list(tmp_path.glob("out*"))
    told = clean(tmp_path / "out", sources, Rules(skip_errors=True))
    assert dropped_lines(tmp_path / "out", "invalid") == [2, 3]
    assert dropped_lines(tmp_path / "out", "exact") == [4]
    assert "not valid JSON" in dropped(tmp_path / "out")[1]["why"]
    assert told.sources["a"].read.records == 4


def test_without_the_extra(tmp_path, monkeypatch):
    from latxa_megatron.data.cleaning import clean as module

    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LatxaError, match=r"pip install 'latxa-megatron\[clean\]'"):
        clean(tmp_path / "out", [source(tmp_path, "a", ["bat"])], Rules())


REFUSED = {
    "two sources of one name": (["a", "a"], Rules(), "the same name"),
    "names that globs mix up": (["a", "a-b"], Rules(), r"a-\*\.jsonl\.zst would match"),
    "a language that is none": (["a"], Rules(languages={"a": ("euskara",)}), "--language euskara"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name, tmp_path):
    names, rules, message = REFUSED[name]
    with pytest.raises(LatxaError, match=message):
        clean(tmp_path / "out", [source(tmp_path, each, ["bat"]) for each in names], rules)
    assert not list(tmp_path.glob("out*"))


def test_an_existing_directory_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(LatxaError, match="exists already"):
        clean(tmp_path / "out", [source(tmp_path, "a", ["bat"])], Rules())
