"""The demo from end to end with a tiny random backbone and its real sample texts, started again, and with other input."""

import json
import shutil
import subprocess
import sys

import pytest

from latxa_megatron.demo.road import walk
from latxa_megatron.errors import LatxaError
from tests.tiny import write_llama


@pytest.fixture(scope="module")
def backbone(tmp_path_factory, byte_tokenizer):
    import transformers

    size = len(transformers.AutoTokenizer.from_pretrained(str(byte_tokenizer)))
    directory = tmp_path_factory.mktemp("demo") / "hf"
    write_llama(directory, vocab_size=size, num_hidden_layers=3, max_position_embeddings=1024, tied=True)
    for file in byte_tokenizer.iterdir():
        shutil.copyfile(file, directory / file.name)
    return directory


@pytest.fixture(scope="module")
def walked(backbone, tmp_path_factory):
    out = tmp_path_factory.mktemp("walk") / "out"
    command = [sys.executable, "-m", "latxa_megatron", "demo", "--out", str(out), "--backbone", str(backbone)]
    subprocess.run(command, check=True)
    return out


def test_report(walked):
    report = json.loads((walked / "report.json").read_text())
    assert len(report["train_loss"]) == 26
    assert report["bpb_eu_after"] < report["bpb_eu_before"] - 1
    assert report["bpb_en_after"] < report["bpb_en_before"] - 1
    assert report["parallel"]["pp"] == 2
    assert 0 < report["peak_rss_gb"] < 10
    assert report["seconds"] > 0
    page = (walked / "report.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "")  # self-contained
    assert f"{report['bpb_eu_after']:.2f}" in page
    assert "Euskal Herriko mendietan" in page


def test_the_exported_model_is_what_was_measured(walked):
    """transformers, with nothing of ours but the held-out rule, finds the same bits per byte on a held-out document."""
    import math

    import torch
    import transformers

    from latxa_megatron.data.sources import find, held_out_documents
    from latxa_megatron.evaluate.model import Evaluated

    corpus = json.loads((walked / "store" / "manifest.json").read_text())["sources"]["corpus_eu"]["files"][0]["path"]
    text = held_out_documents(find("eu", [corpus], 0.1))[0].text[:300]
    model = transformers.AutoModelForCausalLM.from_pretrained(str(walked / "exported"), dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(walked / "exported"))
    evaluated = Evaluated(walked / "exported")
    ids = torch.tensor([[evaluated._prefix(), *tokenizer(text, add_special_tokens=False).input_ids]])
    with torch.no_grad():
        loss = model(ids, labels=ids).loss
    bits = float(loss) * (ids.shape[1] - 1) / math.log(2) / len(text.encode())
    assert evaluated.bits_per_byte([text]) == pytest.approx(bits, rel=1e-4)


def test_started_again_it_does_nothing_twice(walked, backbone):
    before = {path: path.stat().st_mtime_ns for path in walked.rglob("*.safetensors")}
    report = (walked / "report.json").read_text()
    walk(walked, backbone=backbone)
    assert {path: path.stat().st_mtime_ns for path in walked.rglob("*.safetensors")} == before
    assert (walked / "report.json").read_text() == report


def test_other_input_is_refused(walked, backbone, tmp_path):
    corpus = tmp_path / "mine.jsonl"
    corpus.write_text('{"id": "a", "text": "Bestelako testua."}\n')
    with pytest.raises(LatxaError, match="holds a demo of other input"):
        walk(walked, backbone=backbone, corpus=[corpus])
