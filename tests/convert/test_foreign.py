"""Checkpoints as other programs lay them out, written by megatron-core's own save, are exported as they are."""

import enum
import pickle
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader

from latxa_megatron.convert import importer, torch_dist_writer
from latxa_megatron.convert.exporter import export_hf
from latxa_megatron.convert.importer import import_hf
from latxa_megatron.convert.megatron import resolve
from latxa_megatron.convert.torch_dist_reader import TorchDistReader
from latxa_megatron.convert.verify import verify
from latxa_megatron.errors import LatxaError
from latxa_megatron.model.gpt import build_model
from latxa_megatron.model.layout import Layout, Precision
from latxa_megatron.model.llama import LlamaShape
from latxa_megatron.train import checkpoint
from latxa_megatron.train.distributed import connected, spread
from tests.tiny import write_llama


class Kind(enum.Enum):
    """Of a class that is not known as safe to unpickle, as those that a newer megatron-core has for arguments."""

    NEWER = 1


STACKED = {"distrib_optim_sharding_type": "fully_reshardable", "singleton_local_shards": False}
EACH_LAYER = {**STACKED, "non_homogeneous_layers": True}


class Harmful:
    """Copies a directory when it is unpickled by who knows no better."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def __reduce__(self):
        return shutil.copytree, (str(Path(__file__).parent), self.directory)


def megatron_lm(**changed) -> dict:
    """What Megatron-LM's common state has of a Llama like the tiny one, by its argument names and defaults."""
    known = {
        **{"num_layers": 4, "hidden_size": 64, "ffn_hidden_size": 96, "num_attention_heads": 8, "num_query_groups": 4},
        **{"group_query_attention": True, "kv_channels": 8, "rotary_base": 50000, "use_rope_scaling": False},
        **{"rope_scaling_factor": 8.0, "norm_epsilon": 1e-5, "softmax_type": "vanilla"},
        **{"position_embedding_type": "rope", "rotary_percent": 1.0, "rotary_interleaved": False, "normalization": "RMSNorm"},
        **{"apply_layernorm_1p": False, "swiglu": True, "rotary_seq_len_interpolation_factor": None, "qk_l2_norm": False},
    }
    return {
        "args": Namespace(**{**known, **changed}),
        "checkpoint_version": 3.0,
        "iteration": 10,
        "num_floating_point_operations_so_far": 0,
    }


LAYOUTS = {
    "Megatron-LM": ("iter_0000010", "", STACKED, megatron_lm()),
    "Megatron-LM, layers by number": ("iter_0000010", "", EACH_LAYER, megatron_lm()),
    "Megatron-Bridge": ("iter_0000010", "", STACKED, {"checkpoint_version": 3.0, "iteration": 10}),
    "NeMo 2": ("weights", "module.", STACKED, {"global_step": 10}),
    "NeMo 2, layers by number": ("weights", "module.", EACH_LAYER, {"global_step": 10}),
}


def save(hf: Path, root: Path, name: str, prefix: str, metadata: dict, common: dict, padding: int = 0) -> None:
    """The weights of an import in megatron-core's GPTModel, saved by megatron-core with a program's names."""
    from megatron.core import dist_checkpointing

    import_hf(hf, root / "import")
    shape = LlamaShape.from_hf(hf)
    with connected(), torch.no_grad():
        spread(Layout(), seed=1)
        model = build_model(LlamaShape(**{**vars(shape), "vocab": shape.vocab + padding}), Layout(), Precision(torch.float32))[0]
        checkpoint.load_weights(root / "import" / "iter_0000000", [model])
        state = model.sharded_state_dict(prefix=prefix, metadata=dict(metadata))
        (root / "other" / name).mkdir(parents=True)
        dist_checkpointing.save({"model": state, **common}, str(root / "other" / name), content_metadata=metadata)
    if name.startswith("iter"):
        (root / "other" / "latest_checkpointed_iteration.txt").write_text("10")


@pytest.mark.parametrize("options", [{}, {"family": "Qwen2"}, {"tied": True}], ids=["llama", "qwen2", "tied"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_export_of_another_programs_checkpoint(name, options, tmp_path):
    hf = write_llama(tmp_path / "hf", **options)
    place, prefix, metadata, common = LAYOUTS[name]
    save(hf, tmp_path, place, prefix, metadata, common)
    assert resolve(tmp_path / "other") == tmp_path / "other" / place
    with pytest.raises(LatxaError, match="its Hugging Face origin is not known; name a directory of the same model with --like"):
        export_hf(tmp_path / "other", tmp_path / "out")
    export_hf(tmp_path / "other", tmp_path / "out", like=hf)
    expected, found = (load_file(path / "model.safetensors") for path in (hf, tmp_path / "out"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[key]) for key, tensor in expected.items())
    assert verify(hf, tmp_path / "other").tensors == len(expected)


@pytest.mark.parametrize("tied", [False, True])
def test_a_padded_vocabulary_is_cut(tied, tmp_path):
    hf = write_llama(tmp_path / "hf", tied=tied)
    save(hf, tmp_path, *LAYOUTS["Megatron-LM"], padding=64)
    export_hf(tmp_path / "other", tmp_path / "out", like=hf)
    expected, found = (load_file(path / "model.safetensors") for path in (hf, tmp_path / "out"))
    assert all(torch.equal(tensor, found[key]) for key, tensor in expected.items())
    assert verify(hf, tmp_path / "other").tensors == len(expected)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_query_groups": 8}, "was written with num_query_groups 8; config.json says 4"),
        ({"rotary_base": 10000}, "was written with rotary_base 10000; config.json says 50000.0"),
        ({"norm_epsilon": 1e-6}, "was written with norm_epsilon 1e-06; config.json says 1e-05"),
        ({"use_rope_scaling": True}, "was written with use_rope_scaling True; config.json says False"),
        ({"apply_layernorm_1p": True}, "was written with apply_layernorm_1p True; config.json says False"),
        ({"rotary_percent": 0.5}, "was written with rotary_percent 0.5; config.json says 1.0"),
        ({"rotary_interleaved": True}, "was written with rotary_interleaved True; config.json says False"),
        (
            {"rotary_seq_len_interpolation_factor": 4},
            "was written with rotary_seq_len_interpolation_factor 4; config.json says 1",
        ),
        ({"softmax_type": "learnable"}, "was written with softmax_type learnable; config.json says vanilla"),
        ({"num_query_groups": 8, "of_a_newer_core": Kind.NEWER}, "was written with num_query_groups 8; config.json says 4"),
    ],
)
def test_arguments_of_another_model_are_refused(changed, message, tmp_path):
    """The tensors alone do not tell: they have the same sizes."""
    hf = write_llama(tmp_path / "hf")
    save(hf, tmp_path, "iter_0000010", "", STACKED, megatron_lm(**changed))
    with pytest.raises(LatxaError, match=message):
        export_hf(tmp_path / "other", tmp_path / "out", like=hf)
    assert not (tmp_path / "out").exists()


def test_all_heads_are_query_groups_where_megatron_lm_has_none(tmp_path):
    hf = write_llama(tmp_path / "hf", num_key_value_heads=8)
    save(hf, tmp_path, "iter_0000010", "", STACKED, megatron_lm(num_query_groups=1, group_query_attention=False))
    export_hf(tmp_path / "other", tmp_path / "out", like=hf)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}, "heads is 4; the checkpoint is of a model with 8"),
        ({"num_hidden_layers": 3}, "layers is 3; the checkpoint is of a model with 4"),
        ({"family": "Qwen2"}, "qkv_bias is True; the checkpoint is of a model with False"),
    ],
)
def test_another_model_cannot_be_the_likeness_of_ours(options, message, monkeypatch, tmp_path):
    """Nor where its tensors have the same sizes: 4 heads of 16 are as many rows as 8 of 8."""
    import_hf(write_llama(tmp_path / "hf"), tmp_path / "ckpt")
    monkeypatch.setattr("latxa_megatron.convert.origin.check_same", lambda *_: None)  # a run's checkpoint has no arguments
    like = write_llama(tmp_path / "like", **options)
    with pytest.raises(LatxaError, match=message):
        export_hf(tmp_path / "ckpt", tmp_path / "out", like=like)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_hidden_layers": 5}, "has 4 layers, config.json says 5"),
        ({"vocab_size": 160}, r"embedding.word_embeddings.weight has the shape \(128, 64\); config.json says \(160, 64\)"),
        ({"intermediate_size": 128}, r"linear_fc1.weight has the shape \(192, 64\); config.json says \(256, 64\)"),
        ({"family": "Qwen2"}, "has no tensor module.decoder.layers.self_attention.linear_qkv.bias"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(options, message, tmp_path):
    save(write_llama(tmp_path / "hf"), tmp_path, *LAYOUTS["NeMo 2"])
    like = write_llama(tmp_path / "like", **options)
    with pytest.raises(LatxaError, match=message):
        export_hf(tmp_path / "other", tmp_path / "out", like=like)
    assert not (tmp_path / "out").exists()


def test_a_tensor_too_many_is_refused(tmp_path):
    save(write_llama(tmp_path / "hf", family="Qwen2"), tmp_path, *LAYOUTS["NeMo 2"])
    like = write_llama(tmp_path / "like")
    with pytest.raises(LatxaError, match=r"has a tensor module.decoder.layers.self_attention.linear_qkv.bias, which a model"):
        export_hf(tmp_path / "other", tmp_path / "out", like=like)


@pytest.mark.parametrize("place", ["common.pt", "among the tensors", ".metadata"])
def test_no_code_of_a_checkpoint_is_run(place, tmp_path, monkeypatch):
    """Its arguments are a pickle, in a file or, since megatron-core 0.19, among the tensors; so is the list of these."""
    hf, harmful = write_llama(tmp_path / "hf"), Harmful(str(tmp_path / "touched"))
    state = {"args": Namespace(num_layers=4, other=harmful)}
    if place == "among the tensors":
        own = torch_dist_writer._save
        monkeypatch.setattr(torch_dist_writer, "_save", lambda value, file: own([state] if value == [None] else value, file))
        monkeypatch.setattr(importer, "states", lambda shape: ["common_state/shard_0_1"])
    directory = import_hf(hf, tmp_path / "ckpt")
    if place == "common.pt":
        torch.save(state, directory / "common.pt")
    elif place == "among the tensors":
        (directory / "common.pt").unlink()
    else:
        metadata = FileSystemReader(directory).read_metadata()
        metadata.planner_data = {"x": harmful}
        (directory / ".metadata").write_bytes(pickle.dumps(metadata))
        (directory / "run.json").unlink()  # which has its hash
    assert TorchDistReader(directory).common()["args"].num_layers == 4
    export_hf(directory, tmp_path / "out", like=hf)
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == load_file(hf / "model.safetensors").keys()
    assert not (tmp_path / "touched").exists()
    pickle.loads(pickle.dumps(harmful))
    assert (tmp_path / "touched").exists()  # it would have been noticed


@pytest.mark.parametrize("stacked", [True, False])
def test_a_tensor_whose_numbers_stand_in_another_order(stacked, tmp_path):
    """megatron-core saves a transposed tensor with its strides, and so reads it again."""
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    kept = torch.arange(24.0).view(2, 3, 4).permute(0, 2, 1) if stacked else torch.arange(12.0).view(3, 4).T
    (tmp_path / "ckpt").mkdir()
    with connected():
        dist_checkpointing.save({"x": ShardedTensor.from_rank_offsets("x", kept)}, str(tmp_path / "ckpt"))
    reader = TorchDistReader(tmp_path / "ckpt")
    assert torch.equal(reader.read("x"), kept)
    if stacked:
        assert torch.equal(reader.read("x", 1, 2, 4), kept[1, 2:4])
    else:
        assert torch.equal(reader.read("x", None, 1, 3), kept[1:3])
