"""Run files: what is wrong is said with file, line and key, or with the override; nothing is guessed."""

from pathlib import Path

import pytest

from latxa_megatron import recipes
from latxa_megatron.config import load_run
from latxa_megatron.errors import LatxaError

RUN = """\
name: tiny
out: out/tiny
model: {hf: backbone}
data:
  store: store
  plan: plan
  sources:
    eu: {paths: [eu.jsonl], hold_out: 0.1}
train:
  global_batch: 8
"""
LINES = RUN.count("\n")


@pytest.fixture
def run_file(tmp_path):
    def write(text: str = RUN, name: str = "run.yaml") -> Path:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def message(file: Path, overrides: list[str] | None = None) -> str:
    with pytest.raises(LatxaError) as error:
        load_run(file, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_run_file_is_read_with_the_studys_defaults(run_file):
    run = load_run(run_file())
    assert (run.name, run.out) == ("tiny", Path("out/tiny"))
    assert run.model.hf == run.tokenizer == Path("backbone")
    assert run.checkpoints == Path("out/tiny/checkpoints")
    assert (run.data.sources["eu"].paths, run.data.sources["eu"].hold_out) == (["eu.jsonl"], 0.1)
    assert (run.train.global_batch, run.train.micro_batch, run.train.seed) == (8, 1, 33)
    optimizer = run.optimizer
    assert (optimizer.lr, optimizer.min_lr_ratio, optimizer.warmup, optimizer.decay) == (1e-5, 0.33, 0.1, "cosine")
    assert (optimizer.beta1, optimizer.beta2, optimizer.eps, optimizer.weight_decay) == (0.9, 0.95, 1e-8, 0.1)
    assert (run.data.seq_length, run.precision.dtype) == (8192, "bf16")


def test_a_tokenizer_of_its_own(run_file):
    assert load_run(run_file(), ["data.tokenizer=other"]).tokenizer == Path("other")


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "1.e-5", "1.0e-5", "+1e-5", "0.00001", "10e-6"])
def test_numbers_with_an_exponent_are_numbers(text, run_file):
    assert load_run(run_file(RUN + f"optimizer: {{lr: {text}}}\n")).optimizer.lr == pytest.approx(1e-5, rel=1e-12)
    assert load_run(run_file(), [f"optimizer.lr={text}"]).optimizer.lr == pytest.approx(1e-5, rel=1e-12)


def test_a_name_like_a_number_stays_text_in_quotes(run_file):
    assert load_run(run_file(RUN.replace("tiny", "'1e5'", 1))).name == "1e5"


@pytest.mark.parametrize(
    ("section", "line", "expected"),
    [
        ("optimizer: {learning_rate: 1}", 1, "there is no key 'optimizer.learning_rate'; there are lr, "),
        ("optimizer: {weight_decy: 1}", 1, "there is no key 'optimizer.weight_decy'; did you mean 'weight_decay'?"),
        ("optimizer:\n  lr: 1e-4\n  eps_: 1", 3, "there is no key 'optimizer.eps_'; did you mean 'eps'?"),
        ("optimiser: {lr: 1}", 1, "there is no key 'optimiser'; did you mean 'optimizer'?"),
        ("checkpoint:\n  every: often", 2, "checkpoint.every: "),
        ("checkpoint:\n  every: 0", 2, "checkpoint.every: "),
        ("checkpoint:\n  every: 1.5", 2, "checkpoint.every: "),
        ("optimizer: {lr: 0}", 1, "optimizer.lr: "),
        ("optimizer: {warmup: 1.1}", 1, "optimizer.warmup: "),
        ("optimizer: {decay: step}", 1, "optimizer.decay: "),
        ("precision: {dtype: fp16}", 1, "precision.dtype: "),
        ("precision: 5", 1, "precision: "),
        ("precision:", 1, "precision: "),
        ("parallel: {tp: [2]}", 1, "parallel.tp: "),
        ("parallel: {tp: {x: 2}}", 1, "parallel.tp: "),
        ("base: studdy", 1, "base: there is no recipe 'studdy'"),
    ],
)
def test_a_fault_is_named_with_file_line_and_key(section, line, expected, run_file):
    file = run_file(RUN + section + "\n")
    found = message(file)
    assert found.startswith(f"{file}:{LINES + line}: ")
    assert expected in found


def test_faults_deep_in_a_source(run_file):
    file = run_file(RUN.replace("hold_out", "holdout"))
    assert message(file) == f"{file}:8: there is no key 'data.sources.eu.holdout'; did you mean 'hold_out'?"
    file = run_file(RUN.replace("[eu.jsonl]", "eu.jsonl"))
    assert message(file).startswith(f"{file}:8: data.sources.eu.paths: ")
    file = run_file(RUN.replace("[eu.jsonl]", "[eu.jsonl, 5]"))
    assert message(file).startswith(f"{file}:8: data.sources.eu.paths.1: ")
    file = run_file(RUN.replace("paths: [eu.jsonl], ", ""))
    assert message(file).startswith(f"{file}:8: the key 'data.sources.eu.paths' is missing (files or globs")


def test_missing_keys_say_what_they_are(run_file):
    file = run_file(RUN.replace("name: tiny\n", ""))
    assert message(file).startswith(f"{file}: the key 'name' is missing")
    file = run_file(RUN.replace("{hf: backbone}", "{}"))
    assert message(file).startswith(f"{file}:3: the key 'model.hf' is missing (Hugging Face directory")


def test_what_does_not_fit_together_is_refused(run_file):
    file = run_file()
    assert "train.global_batch: is not a multiple of train.micro_batch" in message(file, ["train.micro_batch=3"])
    assert "parallel.vp: " in message(file, ["parallel.vp=2"])
    for other in ("parallel.tp=1", "parallel.cp=2", "precision.fp8=blockwise", "precision.dtype=fp32"):
        assert "parallel.tp_overlap: " in message(file, ["parallel.tp=2", "parallel.tp_overlap=true", other])
    for other in ("train.neftune_alpha=5", "precision.fp8=delayed", "precision.fp8=blockwise"):
        assert "train.cuda_graph: " in message(file, ["train.cuda_graph=true", other])
    assert load_run(file, ["train.cuda_graph=true", "precision.fp8=tensorwise"]).train.cuda_graph
    assert load_run(file, ["parallel.vp=2", "parallel.pp=2"]).parallel.vp == 2


@pytest.mark.parametrize(
    ("text", "line"),
    [("name: [a", 1), ("name: a\n\tout: b", 2), ("name: a\nout: {b", 2), ("name: @", 1), ("a: *b", 1), ("a: !!x 1", 1)],
)
def test_bad_yaml_is_named_with_file_and_line(text, line, run_file):
    file = run_file(text)
    found = message(file)
    assert found.startswith((f"{file}:{line}: ", f"{file}:{line + 1}: "))  # some parsers notice on the next line
    assert "is not valid YAML" in found


@pytest.mark.parametrize("text", ["", "- a", "5", "# nothing"])
def test_what_is_no_mapping_is_refused(text, run_file):
    assert "a run file is a YAML mapping" in message(run_file(text))


def test_files_that_cannot_be_read_are_named(tmp_path):
    assert message(tmp_path / "gone.yaml").startswith(f"{tmp_path / 'gone.yaml'}: there is no such run file")
    assert message(tmp_path).startswith(f"{tmp_path}: cannot be read as text")
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    assert message(tmp_path / "latin.yaml").startswith(f"{tmp_path / 'latin.yaml'}: cannot be read as text")


def test_overrides_come_last_and_in_their_order(run_file):
    overrides = ["train.steps=5", "train.steps=7", "optimizer.decay=linear", "data.sources.en.paths=[en.jsonl]"]
    run = load_run(run_file(), [*overrides, "parallel={pp: 2, stages: [3, 1]}", "data.sources.eu.epochs=0.5"])
    assert (run.train.steps, run.train.global_batch, run.optimizer.decay) == (7, 8, "linear")
    assert (run.parallel.pp, run.parallel.stages) == (2, [3, 1])
    assert (run.data.sources["en"].paths, run.data.sources["eu"].paths) == (["en.jsonl"], ["eu.jsonl"])
    assert (run.data.sources["eu"].epochs, run.data.sources["eu"].hold_out) == (0.5, 0.1)


@pytest.mark.parametrize("override", ["train.steps", "=5", "train.steps 5", ""])
def test_an_override_without_key_or_value_is_refused(override, run_file):
    assert message(run_file(), [override]) == f"'{override}': an override has the form section.key=value"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.step=5", "there is no key 'train.step'; did you mean 'steps'?"),
        ("train.global_batch=many", "train.global_batch: "),
        ("train.global_batch=0", "train.global_batch: "),
        ("optimizer.lr=[1", "the value is not valid YAML"),
        ("train=null", "train: "),
        ("name=5", "name: "),
        ("data.sources.eu.paths=eu.jsonl", "data.sources.eu.paths: "),
    ],
)
def test_a_fault_in_an_override_names_the_override(override, expected, run_file):
    assert message(run_file(), ["train.seed=1", override]).startswith(f"'{override}': {expected}")


@pytest.mark.parametrize("override", ["model.hf.x=1", "data.sources.eu.paths=[5]", "parallel={tp: x}", "parallel={tpp: 1}"])
def test_a_fault_inside_or_above_an_overrides_key_names_the_override(override, run_file):
    assert message(run_file(), [override]).startswith(f"'{override}': ")


@pytest.mark.parametrize("text", ["base: 5\n", "base: [demo, dmeo]\n", "base: {a: b}\n"])
def test_a_base_that_is_no_name_is_refused(text, run_file):
    assert "base: there is no recipe" in message(run_file(text))


def test_a_value_that_yaml_cannot_construct_is_refused(run_file):
    assert "is not valid YAML" in message(run_file(RUN.replace("tiny", "2024-13-45", 1)))


def test_a_key_that_stands_twice_is_refused(run_file):
    assert "train" in message(run_file(RUN + "train: {steps: 5}\n"))  # global_batch would be lost


@pytest.mark.parametrize("value", [".inf", "1e400"])
def test_an_infinite_learning_rate_is_refused(value, run_file):
    assert "optimizer.lr" in message(run_file(), [f"optimizer.lr={value}"])


def test_a_base_recipe_is_merged_below_the_file(run_file, monkeypatch, tmp_path):
    run_file(RUN + "optimizer: {lr: 1e-4, eps: 1e-6}\n", "ground.yaml")
    run_file("base: ground\nname: middle\ntrain: {steps: 3}\n", "middle.yaml")
    monkeypatch.setattr(recipes, "_HERE", tmp_path)
    file = run_file("base: middle\nout: here\noptimizer: {eps: 1e-7}\ndata: {sources: {en: {paths: [en.jsonl]}}}\n")
    run = load_run(file, ["train.steps=4"])
    assert (run.name, run.out) == ("middle", Path("here"))
    assert (run.optimizer.lr, run.optimizer.eps) == (1e-4, 1e-7)
    assert (run.train.steps, run.train.global_batch) == (4, 8)
    assert list(run.data.sources) == ["eu", "en"]
    file = run_file("base: middle\ntrain: {step: 1}\n")
    assert message(file).startswith(f"{file}:2: there is no key 'train.step'")
    file = run_file("base: midle\n")
    assert message(file) == f"{file}:1: base: there is no recipe 'midle'; did you mean 'middle'?"


def test_places_that_are_not_given_follow_from_the_name(run_file):
    text = RUN.replace("out: out/tiny\n", "").replace("  store: store\n", "").replace("  plan: plan\n", "  plan: other\n")
    run = load_run(run_file(text))
    assert (run.out, run.data.store, run.data.plan) == (Path("runs/tiny"), Path("data/tiny/store"), Path("other"))


def test_several_base_recipes_are_merged_in_their_order(run_file, monkeypatch, tmp_path):
    run_file("optimizer: {lr: 1e-4, eps: 1e-6}\ndata: {sources: {eu: {paths: [eu.jsonl]}}}\n", "one.yaml")
    run_file("optimizer: {lr: 2e-4}\ndata: {sources: {en: {paths: [en.jsonl]}}}\n", "two.yaml")
    monkeypatch.setattr(recipes, "_HERE", tmp_path)
    run = load_run(run_file("base: [one, two]\nname: both\nmodel: {hf: there}\noptimizer: {beta2: 0.9}\n"))
    assert (run.optimizer.lr, run.optimizer.eps, run.optimizer.beta2) == (2e-4, 1e-6, 0.9)
    assert list(run.data.sources) == ["eu", "en"]


def test_the_studys_runs():
    """Its 17 8B runs by backbone and sources, and what all share; hand-written from the paper."""
    codes = {0: "010 011 101 110 111", 1: "001 010 011 101 110 111", 2: "010 011 100 101 110 111"}
    models = ("Llama-3.1-8B", "Latxa-Llama-3.1-8B", "Llama-3.1-8B-Instruct")
    expected = {f"exp_{b}_{code}": (models[b], code) for b, many in codes.items() for code in many.split()}
    assert {name for name in recipes.names() if name.startswith("exp_")} == expected.keys()
    for name, (model, code) in expected.items():
        run = load_run(recipes.path(name))
        used = [
            source for source, bit in zip(("corpus_eu", "instructions_eu", "instructions_en"), code, strict=True) if bit == "1"
        ]
        assert (run.model.hf.name, list(run.data.sources)) == (model, used)
        assert {source.epochs for source in run.data.sources.values()} == {4}
        assert run.tokenizer.name == "Llama-3.1-8B-Instruct"
        assert (run.train.global_batch, run.train.neftune_alpha, run.train.seed, run.data.seq_length) == (256, 5, 33, 8192)
        o = run.optimizer
        assert (o.lr, o.min_lr_ratio, o.warmup, o.decay) == (1e-5, 0.33, 0.1, "cosine")
        assert (o.beta1, o.beta2, o.eps, o.weight_decay) == (0.9, 0.95, 1e-8, 0.1)
    assert load_run(recipes.path("latxa_70b")).train.global_batch == 512


@pytest.mark.parametrize("name", recipes.names(bases=False))
def test_every_recipe_that_ships_loads(name):
    run = load_run(recipes.path(name))
    assert run.name == name
    assert run.data.sources


@pytest.mark.parametrize("value", ["true", "0", "full", "1.5"])
def test_what_recompute_may_be(value, run_file):
    said = message(run_file(), [f"train.recompute={value}"])
    assert said.startswith(f"'train.recompute={value}': train.recompute: input should be")
    assert "'none' or 'selective'" in said


@pytest.mark.parametrize("name", ["''", "a/b"])
def test_a_name_that_is_no_directory(name, run_file):
    assert "name:" in message(run_file(RUN.replace("name: tiny", f"name: {name}")))


def test_gradients_are_not_summed_in_less_than_the_weights(run_file):
    assert "precision.gradients" in message(run_file(), ["precision.dtype=fp32", "precision.gradients=bf16"])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["fp8_head=true"], "precision.fp8_head: goes with an FP8 recipe"),
        (["fp8_params=true"], "precision.fp8_params: goes with an FP8 recipe"),
        (["fp8=tensorwise", "dtype=fp32"], "precision.dtype: FP8 products go with bf16 weights"),
        (["fp8=delayed", "fp8_head=true"], "precision.fp8: delayed scaling is for all layers"),
        (["fp8=delayed", "bf16_layers=[1, 1]"], "precision.fp8: delayed scaling is for all layers"),
        (["bf16_layers=[1]"], "precision.bf16_layers: "),
        (["bf16_layers=[1, -1]"], "precision.bf16_layers"),
    ],
)
def test_what_does_not_go_with_an_fp8_recipe(overrides, expected, run_file):
    assert expected in message(run_file(), [f"precision.{override}" for override in overrides])


def test_a_recipe_that_does_not_ship_is_refused():
    with pytest.raises(LatxaError, match="there is no recipe 'demos'"):
        recipes.path("demos")
