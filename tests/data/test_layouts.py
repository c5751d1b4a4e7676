"""Data sets as directories and on a hub: the files that `datasets` itself reads, and a question where it is not clear which."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from latxa_megatron.data import sources as src
from latxa_megatron.data.layouts import choose, split_of
from latxa_megatron.errors import LatxaError
from tests.data.samples import CONVERSATIONS, DOCUMENTS
from tests.data.test_tables import write_rows
from tests.data.writers import write_jsonl


def read(pattern) -> list[src.Record]:
    source = src.find("eu", [str(pattern)])
    return [record for path in source.paths for chunk in src.chunks(path, 700) for record in src.records(chunk)]


@pytest.fixture(scope="module")
def datasets():
    return pytest.importorskip("datasets")


def test_a_dataset_that_datasets_saved(datasets, tmp_path):
    rows = datasets.Dataset.from_list(DOCUMENTS)
    rows.save_to_disk(str(tmp_path / "docs"), num_shards=3)
    assert [record.text for record in read(tmp_path / "docs")] == [d["text"] for d in DOCUMENTS]
    rows.shuffle(seed=1).select(range(20)).save_to_disk(str(tmp_path / "some"))
    assert [r.text for r in read(tmp_path / "some")] == datasets.load_from_disk(str(tmp_path / "some"))["text"][:]
    datasets.Dataset.from_list(CONVERSATIONS).save_to_disk(str(tmp_path / "chat"))
    assert [record.messages for record in read(tmp_path / "chat")] == [c["messages"] for c in CONVERSATIONS]
    (tmp_path / "docs" / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(LatxaError, match=r"data-00001-of-00003\.arrow: is missing, and .*state\.json names it"):
        read(tmp_path / "docs")


def test_the_splits_that_datasets_saved(datasets, tmp_path):
    parts = {"train": DOCUMENTS[:60], "test": DOCUMENTS[60:]}
    both = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in parts.items()})
    both.save_to_disk(str(tmp_path / "both"))
    for name in (f"{tmp_path}/both:test", f"{tmp_path}/both/test"):
        assert [record.text for record in read(name)] == [d["text"] for d in parts["test"]]
    with pytest.raises(LatxaError, match=r"both: has files of the splits test, train; name one, as in .*both:train"):
        read(tmp_path / "both")
    with pytest.raises(LatxaError, match="has no split 'dev'; its files are of test, train"):
        read(f"{tmp_path}/both:dev")


def test_a_directory_as_on_the_hub(datasets, tmp_path):
    """Against the files that datasets.load_dataset finds in it."""
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text("# A corpus")
    for i in range(2):
        write_rows(tmp_path / "data" / f"train-{i:05d}-of-00002.parquet", DOCUMENTS[i * 40 : (i + 1) * 40])
    write_rows(tmp_path / "data" / "validation-00000-of-00001.parquet", DOCUMENTS[80:])
    for split in ("train", "validation"):
        builder = datasets.load_dataset_builder(str(tmp_path), cache_dir=str(tmp_path / ".cache"))
        expected = sorted(builder.config.data_files[split])
        assert [str(path) for path in src.find("eu", [f"{tmp_path}:{split}"]).paths] == expected


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00001.parquet", "train"),
        ("data/valid-00000-of-00001-6ef3991c06080e14.parquet", "validation"),
        ("data/eu-00000-of-00002.parquet", "eu"),
        ("test/data-00000-of-00002.arrow", "test"),
        ("corpus_dev.jsonl.zst", "validation"),
        ("test/train.jsonl", "train"),
        ("contest/latest.jsonl", ""),
        ("egunkaria.jsonl", ""),
    ],
)
def test_the_split_that_a_name_says(name, split):
    assert split_of(name) == split


CHOICES = [
    (["a.jsonl", "b.jsonl.gz", "README.md", ".git/c.jsonl", "dataset_infos.json"], None, ["a.jsonl", "b.jsonl.gz"]),
    (["d/x.parquet", "stats.json"], None, ["d/x.parquet"]),
    (["train.jsonl", "test.jsonl"], "train", ["train.jsonl"]),
    (["train.jsonl", "dev.jsonl"], "dev", ["dev.jsonl"]),
    (["README.md"], None, "holds no Parquet, Arrow or JSONL file"),
    (["a.jsonl", "a.parquet"], None, r"X: holds \.jsonl and \.parquet files; name those of one kind, as in X/\*\.parquet"),
    (["a.jsonl", "dev.jsonl"], None, r"has files of the splits \(none\), validation; name one, as in X:validation"),
    (["train.jsonl"], "test", "has no split 'test'; its files are of train"),
    (["eu/a.jsonl", "es/a.jsonl"], None, "has files in the folders es, eu; name one, as in X/eu"),
    ([f"train-{i:05d}-of-00003.parquet" for i in (0, 2)], None, "X: train-00001-of-00003 is missing among 2"),
]


@pytest.mark.parametrize(("names", "split", "expected"), CHOICES)
def test_files_are_chosen_or_the_user_is_asked(names, split, expected):
    if isinstance(expected, list):
        assert choose(names, "X", split) == expected
    else:
        with pytest.raises(LatxaError, match=expected):
            choose(names, "X", split)


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download needs: what a repository holds, and its files."""

    files: dict[str, bytes]
    commit = "1" * 40

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool):
        path = self.path.partition("?")[0].strip("/").split("/")
        if path[:4] == ["api", "datasets", "o", "n"] and path[4:] in ([], ["revision", "main"], ["revision", self.commit]):
            siblings = [{"rfilename": name} for name in self.files]
            self.send(json.dumps({"id": "o/n", "sha": self.commit, "siblings": siblings}).encode(), body)
        elif path[:6] == ["api", "datasets", "o", "n", "tree", self.commit]:
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.files.items()
            ]
            self.send(json.dumps(tree).encode(), body)
        elif path[:5] == ["datasets", "o", "n", "resolve", self.commit] and "/".join(path[5:]) in self.files:
            self.send(self.files["/".join(path[5:])], body)
        else:
            self.send(b"", body, 404, "RepoNotFound")

    def send(self, data: bytes, body: bool, status: int = 200, error: str = ""):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.commit)
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A repository o/n on a hub of this machine."""
    import huggingface_hub
    from huggingface_hub import constants, hf_api

    write_rows(tmp_path / "a.parquet", DOCUMENTS[:50])
    write_jsonl(tmp_path / "b.jsonl", DOCUMENTS[50:])
    Hub.files = {
        "README.md": b"# A corpus",
        "eu/train-00000-of-00001.parquet": (tmp_path / "a.parquet").read_bytes(),
        "eu/test-00000-of-00001.parquet": b"none",
        "more/extra.jsonl": (tmp_path / "b.jsonl").read_bytes(),
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    for module, name in ((constants, "ENDPOINT"), (hf_api, "ENDPOINT")):
        monkeypatch.setattr(module, name, url, raising=False)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()


def test_a_data_set_of_the_hub(hub):
    assert [record.text for record in read("hf:o/n/eu:train")] == [d["text"] for d in DOCUMENTS[:50]]
    assert [record.text for record in read("hf:o/n@main/more/*.jsonl")] == [d["text"] for d in DOCUMENTS[50:]]
    [path] = src.find("eu", ["hf:o/n/more"]).paths
    assert Hub.commit in str(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:o/n", "hf:o/n: holds .jsonl and .parquet files"),
        ("hf:o/n/eu", r"has files of the splits test, train; name one, as in hf:o/n/eu:train"),
        ("hf:o/n/es", "has no such file or folder"),
        ("hf:o/n/*.parquet:eu", "no Parquet, Arrow or JSONL file of the data set matches"),
        ("hf:o/gone", "the hub has no such data set, or shows it only after `hf auth login`"),
        ("hf:n", r"has the form hf:OWNER/NAME\[@REVISION\]\[/FOLDER_OR_GLOB\]\[:SPLIT\]"),
    ],
)
def test_what_a_hub_has_not_or_has_twice(name, message, hub):
    with pytest.raises(LatxaError, match=message) as error:
        read(name)
    assert "\n" not in str(error.value)


def test_without_network_one_sentence(hub, monkeypatch):
    from huggingface_hub import HfApi

    def no_network(*_, **__):
        raise OSError("Name or service not known\nand more")

    monkeypatch.setattr(HfApi, "dataset_info", no_network)
    with pytest.raises(
        LatxaError, match=r"^hf:o/n: cannot be fetched \(Name or service not known\); without network, give"
    ) as error:
        read("hf:o/n")
    assert "\n" not in str(error.value)
