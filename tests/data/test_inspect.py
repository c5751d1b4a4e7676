"""What `latxa data inspect` shows, against what was put in."""

import pytest

from latxa_megatron.cli.data_tables import print_sample
from latxa_megatron.data.build import build_store
from latxa_megatron.data.dataset import PackedDataset
from latxa_megatron.data.inspect import inspect
from latxa_megatron.data.mixture import Mix
from latxa_megatron.data.packing import pack
from latxa_megatron.data.sources import find
from latxa_megatron.errors import LatxaError
from tests.data.writers import write_jsonl, write_store, write_tokenizer

TEXTS = ["Kaixo, mundua!", "ñ", "Hiru dira."]


@pytest.fixture(scope="module")
def root(tmp_path_factory, byte_tokenizer):
    """A store of three documents and a conversation, and a plan of it in samples of 80."""
    root = tmp_path_factory.mktemp("inspect")
    documents = write_jsonl(root / "eu.jsonl", [{"text": text} for text in TEXTS])
    messages = [{"role": "user", "content": "Zer da?"}, {"role": "assistant", "content": "Hori."}]
    chat = write_jsonl(root / "chat.jsonl", [{"messages": messages}])
    build_store(root / "store", byte_tokenizer, [find("eu", [str(documents)]), find("chat", [str(chat)])])
    pack(root / "plan", [Mix(root / "store", {"eu": 2.0})], seq_length=80, seed=1)
    return root


def pieces(inspection):
    return [(piece.text, piece.trained) for document in inspection.samples[0].documents for piece in document.pieces]


def test_the_facts_of_a_store(root):
    found = inspect(root / "store")
    assert found.plan is None
    assert found.samples == []
    tokens = sum(len(text.encode()) + 1 for text in TEXTS)
    assert (found.sources["eu"].documents, found.sources["eu"].tokens) == (3, tokens)
    assert (found.sources["chat"].documents, found.sources["chat"].trained_tokens) == (1, len("Hori.") + 1)


def test_a_document_of_a_store(root, byte_tokenizer):
    assert pieces(inspect(root / "store", byte_tokenizer, 1)) == [("ñ<|endoftext|>", True)]
    assert pieces(inspect(root / "store", byte_tokenizer, 3)) == [
        ("<|im_start|>user\nZer da?<|im_end|>\n<|im_start|>assistant\n", False),
        ("Hori.<|im_end|>", True),
        ("\n", False),
    ]


def test_the_facts_and_the_samples_of_a_plan(root, byte_tokenizer):
    found = inspect(root / "plan")
    assert (found.plan.seq_length, found.plan.passes) == (80, 2)
    shown = []
    for sample in range(found.plan.samples):
        (of_sample,) = inspect(root / "plan", byte_tokenizer, sample).samples
        shown += [[(piece.text, piece.trained) for piece in document.pieces] for document in of_sample.documents]
    assert len(shown) == 2 * len(TEXTS) + 1  # two epochs of the texts, one of the conversation; padding is no document
    for text in TEXTS:  # a document's first token is a label of none
        first = text.encode()[:1].decode(errors="replace")
        rest = text.encode()[1:].decode(errors="replace") + "<|endoftext|>"
        assert shown.count([(first, False), (rest, True)]) == 2
    conversation = [
        ("<|im_start|>user\nZer da?<|im_end|>\n<|im_start|>assistant\n", False),
        ("Hori.<|im_end|>", True),
        ("\n", False),
    ]
    assert shown.count(conversation) == 1


def test_trained_tokens_are_those_that_training_counts(root, byte_tokenizer):
    dataset = PackedDataset(root / "plan")
    for number in range(len(dataset)):
        (sample,) = inspect(root / "plan", byte_tokenizer, number).samples
        trained = [end - start for document in sample.documents for start, end in document.spans]
        assert sum(trained) == dataset.batch([number]).loss_mask.sum()


def test_of_a_long_document_its_beginning_and_end(byte_tokenizer, tmp_path, capsys):
    text = f"{'a' * 3000}{'b' * 2000}{'c' * 3000}"
    build_store(tmp_path / "store", byte_tokenizer, [find("eu", [str(write_jsonl(tmp_path / "eu.jsonl", [{"text": text}]))])])
    found = inspect(tmp_path / "store", byte_tokenizer)
    assert pieces(found) == [("a" * 1500, True), (None, False), ("c" * 499 + "<|endoftext|>", True)]
    print_sample(found)
    shown = "".join(capsys.readouterr().out.split())
    assert shown.endswith("a…6,001tokensarenotshown…" + "c" * 499 + "<|endoftext|>")


def test_what_cannot_be_shown_is_refused(root, byte_tokenizer, tmp_path):
    with pytest.raises(LatxaError, match="neither a token store nor a pack plan"):
        inspect(tmp_path)
    with pytest.raises(LatxaError, match="has no sample 4; there are 4"):
        inspect(root / "store", byte_tokenizer, 4)
    with pytest.raises(LatxaError, match="has no sample -1"):
        inspect(root / "plan", byte_tokenizer, -1)
    other = write_tokenizer(tmp_path / "other", begin=True)
    for path in (root / "store", root / "plan"):
        with pytest.raises(LatxaError, match="is not the tokenizer that"):
            inspect(path, other)


def test_sources_of_one_name_in_two_stores_are_both_counted(tmp_path):
    stores = [write_store(tmp_path / str(i), [("eu", [([1, 2, i], [(0, 3)])])]) for i in range(2)]
    pack(tmp_path / "plan", [Mix(store, {}) for store in stores], seq_length=8, seed=1)
    assert sum(totals.documents for totals in inspect(tmp_path / "plan").sources.values()) == 2
