"""Import followed by export is the source, bit for bit, whatever the pieces and the number of threads."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from latxa_megatron.convert import exporter, importer
from latxa_megatron.convert.exporter import export_hf
from latxa_megatron.convert.importer import import_hf
from latxa_megatron.convert.megatron import MegatronTensors
from latxa_megatron.convert.names import parts
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import sha256
from latxa_megatron.model.llama import LlamaShape
from latxa_megatron.train.checkpoint import read_facts
from latxa_megatron.train.distributed import connected
from tests.data.writers import write_tokenizer
from tests.tiny import load_llama, write_llama


@pytest.mark.parametrize(
    "options",
    [{}, {"tied": True}, {"dtype": torch.bfloat16}, {"max_shard_size": "100KB"}, {"family": "Qwen2"}, {"family": "Qwen3"}],
    ids=["fp32", "tied", "bf16", "several files", "biases", "norms of queries and keys"],
)
def test_export_of_an_import_is_the_source(options, tmp_path):
    source = write_llama(tmp_path / "hf", **options)
    import_hf(source, tmp_path / "ckpt")
    export_hf(tmp_path / "ckpt", tmp_path / "back")
    files = sorted(path.name for path in source.glob("*.safetensors"))
    assert files == sorted(path.name for path in (tmp_path / "back").glob("*.safetensors"))
    assert len(files) > 1 if "max_shard_size" in options else len(files) == 1
    for file in files:
        before, after = load_file(source / file), load_file(tmp_path / "back" / file)
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            assert tensor.dtype == after[name].dtype
            assert torch.equal(tensor, after[name]), name
    assert (source / "config.json").read_bytes() == (tmp_path / "back" / "config.json").read_bytes()
    tokens = torch.arange(32)[None]
    dtype = options.get("dtype", torch.float32)
    with torch.no_grad():
        assert torch.equal(load_llama(source, dtype)(tokens).logits, load_llama(tmp_path / "back", dtype)(tokens).logits)


@pytest.mark.parametrize("piece", [1, 1000, 5000])
def test_tensors_in_pieces_are_the_same(piece, tmp_path, monkeypatch):
    """Also to megatron-core's own reader, which finds no gap and no overlap."""
    from megatron.core import dist_checkpointing

    source = write_llama(tmp_path / "hf", dtype=torch.bfloat16)
    whole = import_hf(source, tmp_path / "whole")
    monkeypatch.setattr(importer, "PIECE_BYTES", piece)
    monkeypatch.setattr(importer, "FILE_BYTES", 20_000)
    monkeypatch.setattr(exporter, "PIECE_BYTES", piece)
    cut = import_hf(source, tmp_path / "cut")
    assert len(list(cut.glob("*.distcp"))) > len(list(whole.glob("*.distcp"))) == 2
    export_hf(tmp_path / "cut", tmp_path / "back")
    before, after = (load_file(path / "model.safetensors") for path in (source, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    with connected():
        expected, found = (dist_checkpointing.load_plain_tensors(str(path)) for path in (whole, cut))
    for key in ("content_metadata", "args", "checkpoint_version", "iteration"):
        assert expected.pop(key) == found.pop(key)
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
def test_no_piece_is_larger_than_was_asked_for(family, tmp_path):
    """Nor of queries, keys and values, which stand group by group in one tensor."""
    source = write_llama(tmp_path / "hf", family=family)
    shape = LlamaShape.from_hf(source)
    tensors = MegatronTensors(import_hf(source, tmp_path / "ckpt"), shape)
    for name, tensor in load_file(source / "model.safetensors").items():
        row, part, layer = parts(shape)[name]
        pieces = list(tensors.pieces(row, part, layer, 600))
        assert max(piece.nbytes for piece in pieces) <= 600
        assert torch.equal(torch.cat(pieces), tensor)


@pytest.mark.parametrize(("workers", "shard"), [(1, "60KB"), (3, "60KB"), (3, "1GB")])
def test_the_same_source_gives_the_same_bytes(workers, shard, tmp_path, monkeypatch):
    """Also where it is a single file, of which several threads write a part each."""
    monkeypatch.setattr(importer, "FILE_BYTES", 60_000)
    hashed = []
    monkeypatch.setattr(importer, "sha256", lambda path: hashed.append(path) or sha256(path))
    source = write_llama(tmp_path / "hf", max_shard_size=shard)
    done = []
    one = import_hf(source, tmp_path / "one")
    assert sorted(hashed) == sorted(source.glob("*.safetensors"))  # once
    other = import_hf(source, tmp_path / "other", workers=workers, report=lambda *bytes_: done.append(bytes_))
    total = sum(tensor.nbytes for path in source.glob("*.safetensors") for tensor in load_file(path).values())
    assert done[-1] == (total, total)
    files = sorted(path.name for path in one.iterdir())
    assert ".metadata" in files
    assert "__0_3.distcp" in files
    for name in files:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    facts = read_facts(one)
    assert facts["sha256"] == {name: sha256(one / name) for name in files if name != "run.json"}
    assert facts["imported"]["files"] == {path.name: sha256(path) for path in source.glob("*.safetensors")}
    for out, threads in (("few", 1), ("many", workers)):
        export_hf(one, tmp_path / out, workers=threads)
    for path in source.glob("*.safetensors"):
        assert (tmp_path / "few" / path.name).read_bytes() == (tmp_path / "many" / path.name).read_bytes()


def test_a_tied_model_may_have_its_head_in_the_files(tmp_path):
    """As some on the hub have; an export has it too. One that is not the embedding is refused."""
    source = write_llama(tmp_path / "hf", tied=True)
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    import_hf(source, tmp_path / "ckpt")
    export_hf(tmp_path / "ckpt", tmp_path / "back")
    assert torch.equal(load_file(tmp_path / "back" / "model.safetensors")["lm_head.weight"], tensors["lm_head.weight"])
    tensors["lm_head.weight"][3, 5] += 1
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LatxaError, match=r"tie_word_embeddings is set, but lm_head.weight is not model.embed_tokens.weight"):
        import_hf(source, tmp_path / "other")


def test_a_checkpoint_has_the_objects_that_either_specification_asks_for(tmp_path):
    """By their names in Megatron-LM's and NeMo's checkpoints; Transformer Engine's attention and norms have some, too."""
    directory = import_hf(write_llama(tmp_path / "hf", family="Qwen3", head_dim=16), tmp_path / "ckpt")
    metadata = FileSystemReader(directory).read_metadata().state_dict_metadata
    modules = [f"self_attention.{x}" for x in ("linear_qkv", "linear_proj", "core_attention", "q_layernorm", "k_layernorm")]
    modules += ["mlp.linear_fc1", "mlp.linear_fc2"]
    expected = {f"decoder.layers.{module}._extra_state/shard_{i}_4" for module in modules for i in range(4)}
    found = {name for name, stored in metadata.items() if isinstance(stored, BytesStorageMetadata)}
    assert found == {*expected, "decoder.final_layernorm._extra_state/shard_0_1"}


def test_the_checkpoint_is_megatrons(tmp_path):
    """megatron-core's own reader finds the stacked tensors under the names that its GPTModel saves."""
    from megatron.core import dist_checkpointing

    import_hf(write_llama(tmp_path / "hf"), tmp_path / "ckpt")
    assert (tmp_path / "ckpt" / "latest_checkpointed_iteration.txt").read_text().strip() == "0"
    found = dist_checkpointing.load_tensors_metadata(str(tmp_path / "ckpt" / "iter_0000000"))
    assert {name: tuple(tensor.global_shape) for name, tensor in found.items()} == {
        "embedding.word_embeddings.weight": (128, 64),
        "decoder.layers.self_attention.linear_qkv.layer_norm_weight": (4, 64),
        "decoder.layers.self_attention.linear_qkv.weight": (4, 128, 64),
        "decoder.layers.self_attention.linear_proj.weight": (4, 64, 64),
        "decoder.layers.mlp.linear_fc1.layer_norm_weight": (4, 64),
        "decoder.layers.mlp.linear_fc1.weight": (4, 192, 64),
        "decoder.layers.mlp.linear_fc2.weight": (4, 64, 96),
        "decoder.final_layernorm.weight": (64,),
        "output_layer.weight": (128, 64),
    }


def test_import_again_is_free_and_another_model_is_refused(tmp_path):
    source = write_llama(tmp_path / "hf")
    final = import_hf(source, tmp_path / "ckpt")
    before = (final / "run.json").stat().st_mtime_ns
    import_hf(source, tmp_path / "ckpt")
    assert (final / "run.json").stat().st_mtime_ns == before
    with pytest.raises(LatxaError, match="holds another checkpoint"):
        import_hf(write_llama(tmp_path / "other", seed=2), tmp_path / "ckpt")
    (tmp_path / "ckpt" / "iter_0000005").mkdir()
    with pytest.raises(LatxaError, match="ckpt: holds other checkpoints; name another directory"):
        import_hf(source, tmp_path / "ckpt")


def test_what_goes_with_the_weights_is_that_of_the_source_now(tmp_path):
    source = write_llama(tmp_path / "hf")
    (source / "chat_template.jinja").write_text("one")
    final = import_hf(source, tmp_path / "ckpt")
    (source / "chat_template.jinja").unlink()
    (source / "generation_config.json").write_text("{}")
    (tmp_path / "ckpt" / "hf.partial").mkdir()  # of an import that was killed
    import_hf(source, tmp_path / "ckpt")
    kept = sorted(path.name for path in (tmp_path / "ckpt" / "hf").iterdir())
    assert kept == ["config.json", "generation_config.json", "weight_map.json"]
    assert (tmp_path / "ckpt" / "hf" / "generation_config.json").read_text() == "{}"
    shutil.rmtree(final)
    import_hf(write_llama(tmp_path / "other", tied=True), tmp_path / "ckpt")
    assert "true" in (tmp_path / "ckpt" / "hf" / "config.json").read_text()


def test_chat_templates_by_name_are_found_by_transformers(tmp_path):
    """In the import's copy and in what --like names, and not those of an import before."""
    import transformers

    source = write_llama(tmp_path / "hf")
    write_tokenizer(source)
    templates = {"default": "one", "rag": "two", "tool_use": "three"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = templates
    tokenizer.save_pretrained(source)
    assert (source / "additional_chat_templates" / "rag.jinja").is_file()
    import_hf(source, tmp_path / "ckpt")
    export_hf(tmp_path / "ckpt", tmp_path / "own")
    export_hf(tmp_path / "ckpt", tmp_path / "like", like=source)
    for out in ("own", "like"):
        assert transformers.AutoTokenizer.from_pretrained(tmp_path / out).chat_template == templates
    own = {str(path.relative_to(tmp_path / "own")): sha256(path) for path in (tmp_path / "own").rglob("*") if path.is_file()}
    card = (tmp_path / "own" / "README.md").read_text()
    assert card.split("| --- | --- |\n")[-1] == "".join(f"| {f} | `{own[f]}` |\n" for f in sorted(own) if f != "README.md")
    (source / "additional_chat_templates" / "rag.jinja").unlink()
    import_hf(source, tmp_path / "ckpt")
    kept = tmp_path / "ckpt" / "hf" / "additional_chat_templates"
    assert [path.name for path in kept.iterdir()] == ["tool_use.jinja"]


def test_a_checkpoint_is_named_from_within_or_by_a_link(tmp_path, monkeypatch):
    final = import_hf(write_llama(tmp_path / "hf" / "tiny"), tmp_path / "ckpt")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "newest").symlink_to(final)
    export_hf(tmp_path / "links" / "newest", tmp_path / "linked")
    monkeypatch.chdir(final)
    export_hf(Path(), tmp_path / "within")
    for out in ("linked", "within"):
        assert (tmp_path / out / "config.json").read_bytes() == (tmp_path / "hf" / "tiny" / "config.json").read_bytes()


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_a_model_that_was_trained_in_another_type_is_loaded_in_that(key, tmp_path):
    """Otherwise transformers, which goes by config.json, would round the weights."""
    import transformers

    source = write_llama(tmp_path / "hf")
    import_hf(source, tmp_path / "ckpt")
    kept = tmp_path / "ckpt" / "hf" / "config.json"
    config = {name: value for name, value in json.loads(kept.read_text()).items() if name != "dtype"}
    kept.write_text(json.dumps({**config, key: "bfloat16"}))
    export_hf(tmp_path / "ckpt", tmp_path / "out")
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in load_file(source / "model.safetensors").items())
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {**config, key: "float32"}
