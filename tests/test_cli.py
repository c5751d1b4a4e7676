"""What bad input gets on the command line: one sentence, exit status 2, no traceback, nothing half-written."""

from dataclasses import dataclass

import pytest
from rich.console import Console

from latxa_megatron.cli.main import main
from tests.tiny import write_llama


@dataclass(frozen=True)
class Result:
    status: int
    stdout: str
    stderr: str


@pytest.fixture
def latxa(monkeypatch, capsys):
    """Runs the command `latxa` in a directory."""

    def run(*arguments, cwd) -> Result:
        monkeypatch.chdir(cwd)
        monkeypatch.setenv("PYTHONWARNINGS", "ignore")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)  # and put back, for verify hides the GPUs
        monkeypatch.setattr("sys.argv", ["latxa", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return Result(int(end.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def inputs(tmp_path, byte_tokenizer):
    (tmp_path / "good.jsonl").write_text('{"text": "Kaixo, mundua!"}\n' * 3)
    (tmp_path / "bad.jsonl").write_text('{"text": "Kaixo"}\n{"text": \n')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "run.yaml").write_text("name: a\nout: out\nmodel: {hf: hf}\ndata:\n  store: s\n  plan: p\noptimiser: {lr: 1}\n")
    (tmp_path / "type.yaml").write_text("name: a\nout: out\nmodel: {hf: hf}\ndata: {store: s, plan: p}\noptimizer:\n  lr: fast\n")
    (tmp_path / "right.yaml").write_text("name: a\nout: out\nmodel: {hf: hf}\ndata: {store: s, plan: p}\n")
    return tmp_path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("model") / "hf")


BUILD = ("data", "build", "--out", "store", "--tokenizer", "{tokenizer}", "--source")

CASES = {
    "not JSON": ((*BUILD, "a=bad.jsonl"), "bad.jsonl:2: the line is not valid JSON"),
    "empty corpus": ((*BUILD, "a=empty.jsonl"), "empty.jsonl: is empty"),
    "missing corpus": ((*BUILD, "a=none*.jsonl"), "none*.jsonl: there is no such file"),
    "source without a name": ((*BUILD, "good.jsonl"), "has the form NAME=GLOB"),
    "no tokenizer there": (
        ("data", "build", "--out", "s", "--tokenizer", "t", "--source", "a=good.jsonl"),
        "t: there is no such",
    ),
    "unknown key": (("train", "run.yaml"), "run.yaml:7: there is no key 'optimiser'; did you mean 'optimizer'?"),
    "wrong type": (("train", "type.yaml"), "type.yaml:6: optimizer.lr"),
    "override": (
        ("train", "right.yaml", "train.stepz=3"),
        "'train.stepz=3': there is no key 'train.stepz'; did you mean 'steps'",
    ),
    "missing model": (("train", "right.yaml"), "hf: there is no such Hugging Face directory"),
    "the same under a launcher": (
        ("launch", "local", "right.yaml", "--nproc", "2"),
        "hf: there is no such Hugging Face directory",
    ),
    "the same on a cluster": (
        ("launch", "slurm", "right.yaml", "--nodes", "2"),
        "hf: there is no such Hugging Face directory",
    ),
    "the same on Kubernetes": (
        ("launch", "k8s", "right.yaml", "--nodes", "2", "--gpus", "8", "--image", "i", "--claim", "a:/a"),
        "hf: there is no such Hugging Face directory",
    ),
    "no site": (("launch", "slurm", "right.yaml", "--nodes", "2", "--site", "leo"), "--site leo: there is no such site"),
    "no claim": (
        ("launch", "k8s", "right.yaml", "--nodes", "2", "--gpus", "8", "--image", "i", "--claim", "a"),
        "--claim a: has the form NAME:/PATH",
    ),
    "no place to meet": (("launch", "local", "right.yaml", "--nproc", "2", "--nodes", "2"), "--first: the machines need"),
    "no such machine": (
        ("launch", "local", "right.yaml", "--nproc", "2", "--nodes", "2", "--node-rank", "2", "--first", "a:1"),
        "--node-rank 2: the 2 machines have the numbers 0 to 1",
    ),
    "no run to tell of": (("launch", "status", "."), ".: is not the directory of a run"),
    "missing run file": (("train", "none.yaml"), "none.yaml: there is no such run file"),
    "no plan": (("data", "inspect", "store"), "store: is neither a token store nor a pack plan"),
    "no place for a page": (("data", "inspect", "store", "--html", "none/a.html"), "there is no directory none"),
    "nothing to verify": (("data", "verify", "store"), "store: is neither a token store nor a pack plan"),
    "no store to merge": (("data", "merge", "--out", "m", "store", "store"), "store: is not a token store"),
    "no store": (("data", "pack", "--out", "p", "store"), "store: is not a token store"),
    "epochs": (("data", "pack", "--out", "p", "store:epoch=2"), "STORE:epochs=N"),
    "weight": (("data", "pack", "--out", "p", "store", "--weight", "a=much"), "a weight is a number of tokens"),
    "weight of nothing": (("data", "pack", "--out", "p", "store", "--weight", "30%"), "NAME=TOKENS or NAME=SHARE"),
    "epochs and weight": (
        ("train", "right.yaml", "data.sources={{a: {{paths: [x], epochs: 2, weight: 30%}}}}"),
        "a source has epochs or a weight, not both",
    ),
    "no model to import": (("convert", "import", "--hf", "hf", "--out", "c"), "hf: there is no such Hugging Face directory"),
    "no adapter": (
        ("convert", "import", "--hf", "{model}", "--out", "c", "--adapter", "a"),
        "a: has no adapter_model.safetensors",
    ),
    "no checkpoint to verify": (("convert", "verify", "--hf", "{model}", "--checkpoint", "c"), "c: there is no such checkpoint"),
    "no checkpoint": (("convert", "export", "--checkpoint", "c", "--out", "h"), "c: there is no such checkpoint"),
    "near duplicates": (
        ("data", "clean", "--out", "c", "--source", "a=good.jsonl", "--near", "most"),
        "--near most: is a share such as 0.8, or off",
    ),
    "language of no source": (
        ("data", "clean", "--out", "c", "--source", "a=good.jsonl", "--language", "b=eu"),
        "--language b=eu: there is no source 'b'",
    ),
    "no recipe": (("recipes", "show", "demmo"), "there is no recipe 'demmo'"),
    "demo corpus": (("demo", "--corpus", "none.jsonl"), "none.jsonl: there is no such file"),
}


@pytest.mark.parametrize("name", CASES)
def test_one_sentence_and_status_2(name, inputs, byte_tokenizer, model, latxa):
    arguments, message = CASES[name]
    before = sorted(path.name for path in inputs.iterdir())
    result = latxa(*(a.format(tokenizer=byte_tokenizer, model=model) for a in arguments), cwd=inputs)
    assert result.status == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    if arguments[0] == "convert":
        assert result.stdout == ""  # not a bar of what was not begun, either
    assert sorted(path.name for path in inputs.iterdir()) == before


def test_the_commands_of_the_road(inputs, byte_tokenizer, latxa):
    """data build, pack, inspect and convert import, export, as a user types them."""
    assert latxa(*(a.format(tokenizer=byte_tokenizer) for a in (*BUILD, "a=good.jsonl")), cwd=inputs).status == 0
    packed = latxa("data", "pack", "--out", "plan", "--seq-length", "16", "store:epochs=2", cwd=inputs)
    assert "plan: plan: 6 samples of 16 positions" in packed.stdout
    weighted = latxa("data", "pack", "--out", "mix", "--seq-length", "16", "--concat", "store", "--weight", "a=1K", cwd=inputs)
    assert weighted.status == 0, weighted.stderr
    assert "packing concat" in latxa("data", "inspect", "mix", cwd=inputs).stdout
    assert "x2" in latxa("data", "inspect", "plan", cwd=inputs).stdout
    shown = latxa("data", "inspect", "plan", "--tokenizer", byte_tokenizer, "--sample", "5", cwd=inputs)
    assert "Kaixo, mundua!" in shown.stdout
    written = latxa("data", "inspect", "plan", "--tokenizer", byte_tokenizer, "--html", "plan.html", cwd=inputs)
    assert "page: plan.html" in written.stdout
    assert "aixo, mundua!&lt;|endoftext|&gt;</mark>" in (inputs / "plan.html").read_text()
    write_llama(inputs / "hf")
    assert "iter_0000000" in latxa("convert", "import", "--hf", "hf", "--out", "ckpt", cwd=inputs).stdout
    exported = latxa("convert", "export", "--checkpoint", "ckpt", "--out", "back", cwd=inputs)
    assert "model: back, of ckpt/iter_0000000" in exported.stdout
    source = (inputs / "hf" / "model.safetensors").read_bytes()
    assert (inputs / "back" / "model.safetensors").read_bytes() == source
    proved = latxa("convert", "verify", "--hf", "hf", "--checkpoint", "ckpt", cwd=inputs)
    assert "the same: 39 tensors, 559.4 kB, bit for bit" in proved.stdout
    assert "logits" in proved.stdout


def test_verify_and_merge_as_a_user_types_them(inputs, byte_tokenizer, latxa):
    """A line and status 1 for a fault; counts of each source of what was merged."""
    (inputs / "other.jsonl").write_text('{"text": "Agur!"}\n')
    for store, sources in (("a", ["eu=good.jsonl"]), ("b", ["eu=other.jsonl"])):
        build = ("data", "build", "--out", store, "--tokenizer", byte_tokenizer, "--source", *sources)
        assert latxa(*build, cwd=inputs).status == 0
    merged = latxa("data", "merge", "--out", "ab", "a", "b", cwd=inputs)
    assert (merged.status, merged.stdout.split()[5:10]) == (0, ["eu", "4", "51", "51", "100.0%"])
    assert "eu 4 51 51 100.0%" in " ".join(latxa("data", "inspect", "ab", cwd=inputs).stdout.split())
    assert latxa("data", "pack", "--out", "plan", "--seq-length", "16", "ab", cwd=inputs).status == 0
    clean = latxa("data", "verify", "plan", "--stores", cwd=inputs)
    assert (clean.status, clean.stdout.splitlines()[-1].split(": ")[-1]) == (0, "no fault")
    (inputs / "ab" / "00001.bin").unlink()
    faulty = latxa("data", "verify", "ab", cwd=inputs)
    assert (faulty.status, faulty.stderr) == (1, "")
    size = sum(file.stat().st_size for file in (inputs / "ab").iterdir())
    assert faulty.stdout.splitlines()[-2:] == ["ab/00001.bin: is missing", f"ab: 4 files, {size:,} bytes: 1 fault"]


def test_clean_as_a_user_types_it(inputs, byte_tokenizer, latxa):
    """The table, and the command that builds what stays."""
    pytest.importorskip("datatrove")
    (inputs / "set.jsonl").write_text('{"question": "bat bi hiru lau bost sei zazpi zortzi"}\n')
    (inputs / "more.jsonl").write_text('{"text": "Bat, bi, hiru, lau, bost, sei, zazpi, zortzi."}\n')
    sources = ("--source", "a=good.jsonl", "--source", "b=more.jsonl", "--against", "t=set.jsonl")
    cleaned = latxa("data", "clean", "--out", "c", *sources, cwd=inputs)
    assert cleaned.status == 0, cleaned.stderr
    shown = " ".join(cleaned.stdout.split())
    assert "source read kept contamination exact of the bytes kept a 3 1 0 2 33.3% b 1 0 1 0 0.0%" in shown
    assert "t: 1 of 1 items found; 0 have no string of 8 words" in shown
    assert "next: latxa data build --source 'a=c/a-*.jsonl.zst'" in shown
    assert latxa(*(a.format(tokenizer=byte_tokenizer) for a in (*BUILD, "a=c/a-*.jsonl.zst")), cwd=inputs).status == 0


def test_recipes_all_load(tmp_path):
    from latxa_megatron import recipes
    from latxa_megatron.config import load_run

    for name in recipes.names(bases=False):
        assert load_run(recipes.path(name)).name == name


@pytest.mark.parametrize("columns", ["80", "100"])
def test_recipes_list_is_a_table_that_fits_100_columns(columns, tmp_path, latxa, monkeypatch):
    monkeypatch.setattr("latxa_megatron.cli.main.console", Console(width=int(columns)))
    lines = latxa("recipes", "list", cwd=tmp_path).stdout.splitlines()
    assert lines[0].split() == ["recipe", "backbone", "data", "x", "epochs", "GPUs", "tokens", "FLOPs"]
    assert max(map(len, lines)) <= 100
    rows = {line.split()[0]: line.split() for line in lines[1:] if line.startswith((" exp_", " latxa_", " demo"))}
    assert len(rows) == 22
    corpus = ["corpus_eu", "x4"]
    assert rows["exp_2_100"][1:] == ["Llama-3.1-8B-Instruct", *corpus, "8", "h100-80g", "16.8B", "7.56e+20"]
    assert rows["exp_1_001"][1:] == ["Latxa-Llama-3.1-8B", "instructions_en", "x4", "8", "h100-80g", "-", "-"]
    corpus = ["corpus_eu", "x4,"]  # its instructions are in the next line
    assert rows["latxa_70b_a100"][1:] == ["Llama-3.1-70B-Instruct", *corpus, "256", "a100-64g", "16.8B+", "7.01e+21+"]
    assert rows["demo"][-3:] == ["-", "26,624", "2.15e+13"]
