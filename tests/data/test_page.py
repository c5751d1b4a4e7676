"""The page of `latxa data inspect --html`: its numbers against brute force, its texts harmless, nothing in it from outside."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from latxa_megatron.data import reading
from latxa_megatron.data.build import build_store
from latxa_megatron.data.inspect import inspect
from latxa_megatron.data.lengths import count
from latxa_megatron.data.mixture import Mix
from latxa_megatron.data.packing import pack
from latxa_megatron.data.page import QUANTILES, page, write_page
from latxa_megatron.data.plan import PackPlan
from latxa_megatron.data.samples import visible
from latxa_megatron.data.sources import find
from latxa_megatron.data.tokenizer import Tokenizer
from tests.data.writers import byte_ids, write_jsonl

EVIL = "</div></mark><script>alert('ñ')</script><img src=x onerror=alert(1)> &lt;b&gt; \x1b[31m \x00 \x7f \x85 \u202e"
TEXTS = [f"{i}. esaldia da hau, " * (1 + i % 40) for i in range(120)] + [EVIL, "ha " * 700]
EVIL_AT = 120
ANSWER = "Ez <b>dakit</b>."
SEQ_LENGTH = 1024


class Page(HTMLParser):
    """All text of a page, of each table the cells of its rows, and the trained texts; refuses what a page must not have."""

    def __init__(self, html):
        super().__init__()
        self.open, self.text, self.tables, self.marks = [], [], {}, []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        assert tag not in ("script", "img", "link", "iframe", "object")
        assert not any(name.startswith("on") or name in ("src", "href") for name in attrs)
        if tag == "table":
            self.rows = self.tables.setdefault(attrs.get("id", attrs.get("class")), [])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "mark":
            self.marks.append("")
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in ("rect", "polyline", "line")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        if "mark" in self.open:
            self.marks[-1] += data


@pytest.fixture(scope="module")
def root(tmp_path_factory, byte_tokenizer):
    root = tmp_path_factory.mktemp("page")
    documents = write_jsonl(root / "eu.jsonl", [{"text": text} for text in TEXTS])
    turns = [{"role": "user", "content": "Zer da <i>hau</i>?"}, {"role": "assistant", "content": ANSWER}]
    chat = write_jsonl(root / "chat.jsonl", [{"messages": turns}] * 5)
    build_store(root / "store", byte_tokenizer, [find("eu", [str(documents)]), find("<chat>", [str(chat)])])
    pack(root / "plan", [Mix(root / "store", {"eu": 2.0})], seq_length=SEQ_LENGTH, seed=1)
    return root


def test_the_sources_of_a_store_are_those_that_were_built(root, byte_tokenizer):
    found = Page(page(inspect(root / "store", byte_tokenizer, page=True)))
    head, chat, eu = ([cell.strip() for cell in row] for row in found.tables["sources"])
    sizes = [len(text.encode()) for text in TEXTS]
    tokens = sum(sizes) + len(sizes)
    all_tokens = tokens + 5 * (len("user\nZer da <i>hau</i>?\nassistant\n") + len(ANSWER) + 5)
    read = [text.encode()[: reading.TOKENS] for text in TEXTS]
    said = [each.decode(errors="replace") for each in read]
    words = sum(len(text.split()) for text in said)
    expected = ["eu", "122", f"{tokens:,}", "100.0%", f"{sum(map(len, read)) / words:.2f}", "1.00", f"{tokens / all_tokens:.1%}"]
    assert eu == expected
    assert chat[:2] == ["<chat>", "5"]
    assert chat[5] == "1.00"
    assert head[4] == "tokens per word"


def test_the_sources_of_a_plan_are_counted_by_sample(root, byte_tokenizer):
    inspection = inspect(root / "plan", byte_tokenizer, page=True)
    found = Page(page(inspection))
    seen = {"eu": 0, "<chat>": 0}
    pieces = continued = filled = 0
    for number in range(inspection.plan.samples):
        (sample,) = inspect(root / "plan", byte_tokenizer, number).samples
        assert sum(document.tokens - 1 for document in sample.documents) + sample.empty == SEQ_LENGTH
        pieces += len(sample.documents)
        continued += sum(document.start > 0 for document in sample.documents)
        filled += SEQ_LENGTH - sample.empty
        for document in sample.documents:
            seen[document.place.source] += document.start == 0
    assert (inspection.plan.pieces, inspection.plan.continued) == (pieces, continued)
    assert inspection.plan.efficiency == pytest.approx(filled / SEQ_LENGTH / inspection.plan.samples)
    rows = {row[0].strip(): row for row in found.tables["sources"]}
    assert float(rows["eu"][6]) == seen["eu"] / 122 == 2
    assert float(rows["<chat>"][6]) == seen["<chat>"] / 5 == 1
    assert rows["eu"][8].replace("\xa0", " ") == "122 ×2"
    assert f"{inspection.plan.efficiency:.2%}" in found.text


def test_quantiles_and_histograms_are_those_of_all_lengths(root, byte_tokenizer):
    found = Page(page(inspect(root / "store", byte_tokenizer)))
    lengths = [len(text.encode()) + 1 for text in TEXTS]
    of_eu = found.tables["quantiles"][3]  # after those of <chat>
    assert of_eu[:3] == [str(int(np.quantile(lengths, q, method="inverted_cdf"))) for q in QUANTILES[:3]]
    rng = np.random.default_rng(1)
    shards = [rng.lognormal(5, 2, n).astype(np.int32) + 1 for n in (1, 1000, 77)]
    together = np.concatenate(shards)
    counted = count(shards)
    assert (counted.documents, counted.tokens) == (len(together), together.sum())
    for q in (0, 0.01, 0.5, 0.999, 1):
        assert counted.quantile(q) == np.quantile(together, q, method="inverted_cdf")
    bars = counted.bars(int(together.max()))
    assert [bar.low for bar in bars][:8] == [0, 1, 2, 3, 4, 6, 8, 12]
    assert [bar.high for bar in bars[:-1]] == [bar.low for bar in bars[1:]]
    for bar in bars:
        inside = together[(together >= bar.low) & (together < bar.high)]
        assert (bar.documents, bar.tokens) == (len(inside), inside.sum())
    assert sum(bar.documents for bar in bars) == len(together)


def test_many_shards_are_counted_in_parts(monkeypatch):
    monkeypatch.setattr("latxa_megatron.data.lengths._PENDING", 3)
    shards = [np.array([n, 5, 5, n + 1], np.int32) for n in range(9)]
    values, counts = np.unique(np.concatenate(shards), return_counts=True)
    found = count(shards)
    assert (found.values.tolist(), found.counts.tolist()) == (values.tolist(), counts.tolist())


def test_the_longest_and_the_strangest_are_found(root, byte_tokenizer):
    inspection = inspect(root / "store", byte_tokenizer)
    order = sorted(range(len(TEXTS)), key=lambda i: (-len(TEXTS[i].encode()), i))
    assert [(long.place.number, long.tokens) for long in inspection.longest] == [
        (i, len(TEXTS[i].encode()) + 1) for i in order[:6]
    ]
    assert inspection.longest[0].text.startswith("ha ha ha")
    repeats = inspection.strange["most repetition"]
    assert repeats[0].text.place.number == 121
    for one in repeats:
        tokens = byte_ids(TEXTS[one.text.place.number])[: reading.TOKENS]
        if len(tokens) < reading.TOKENS:
            tokens.append(0)
        runs = [tuple(tokens[i : i + 4]) for i in range(len(tokens) - 3)]
        assert one.figure == 1 - len(set(runs)) / len(runs)


def test_texts_with_few_and_many_bytes_per_token_are_strange(llama_tokenizer, tmp_path):
    texts = [f"Hau da {i}. testua, euskaraz idatzia, eta ez du ezer berezirik. " * 6 for i in range(30)]
    texts[11], texts[22] = "qzxj7 " * 60, "international organization " * 60
    build_store(
        tmp_path / "store", llama_tokenizer, [find("eu", [str(write_jsonl(tmp_path / "a.jsonl", [{"text": t} for t in texts]))])]
    )
    inspection = inspect(tmp_path / "store", llama_tokenizer)
    few, many = inspection.strange["fewest bytes per token"][0], inspection.strange["most bytes per token"][0]
    assert (few.text.place.number, many.text.place.number) == (11, 22)
    ids = Tokenizer(llama_tokenizer).encode_texts([texts[22]])[0]
    assert many.figure == pytest.approx(len(texts[22]) / len(ids))


@pytest.mark.parametrize("name", ["store", "plan"])
def test_what_documents_say_is_escaped_and_trained_tokens_are_marked(name, root, byte_tokenizer, tmp_path):
    of = root / name
    if name == "plan":
        plan = PackPlan(of)
        numbers = [n for n in range(len(plan)) if any(s["shard"] == 1 or s["document"] == EVIL_AT for s in plan.slices_of(n))]
    else:
        numbers = range(EVIL_AT, 127)
    said, marks = "", []
    for number in numbers:
        write_page(tmp_path / "page.html", inspect(of, byte_tokenizer, number, page=True))
        html = (tmp_path / "page.html").read_text(encoding="utf-8")
        assert not re.search(r"https?://|@import|url\(", html)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", html)
        found = Page(html)
        said += "".join(found.text)
        marks += found.marks
    assert visible(EVIL[1:]) in said
    assert ANSWER + "<|im_end|>" in marks
    if name == "store":
        assert visible(EVIL) + "<|endoftext|>" in marks
    else:  # a document's first token is no label
        assert visible(EVIL[1:]) + "<|endoftext|>" in marks


def test_without_a_tokenizer_there_is_a_page_without_texts(root):
    for name in ("store", "plan"):
        found = Page(page(inspect(root / name)))
        assert {"sources", "longest", "quantiles"} == set(found.tables)
        assert not found.marks


def test_control_characters_are_shown_and_others_kept():
    assert visible("a\tb\n\x1b[0m\r\x00\x7f\x9b ñ🙂") == "a\tb\n␛[0m␍␀␡\ufffd ñ🙂"


def test_of_long_documents_the_middle_is_left_out(byte_tokenizer, tmp_path):
    text = "".join(chr(97 + i % 26) for i in range(3000))
    source = find("eu", [str(write_jsonl(tmp_path / "a.jsonl", [{"text": text}]))])
    build_store(tmp_path / "store", byte_tokenizer, [source])
    (document,) = inspect(tmp_path / "store", byte_tokenizer, page=True).samples[0].documents
    first, gap, last = document.pieces
    assert (first.text, gap.text) == (text[:600], None)
    assert gap.tokens == 3001 - 800
    assert last.text == text[3000 - 199 :] + "<|endoftext|>"
    assert document.spans == [(0, 3001)]
