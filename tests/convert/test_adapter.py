"""A LoRA that is merged while importing is what PEFT merges; what is not a plain LoRA is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from latxa_megatron.convert import adapter as adapters
from latxa_megatron.convert.exporter import export_hf
from latxa_megatron.convert.importer import import_hf
from latxa_megatron.convert.verify import verify
from latxa_megatron.errors import LatxaError
from tests.tiny import load_llama, write_llama

LINEAR = ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]

ADAPTERS = {
    "attention": {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 16},
    "all, rank-stabilized": {"target_modules": [*LINEAR, "k_proj", "up_proj"], "r": 3, "lora_alpha": 8, "use_rslora": True},
    "ranks and alphas of their own": {
        "target_modules": LINEAR,
        "rank_pattern": {"v_proj": 2, "layers.1.mlp.gate_proj": 5},
        "alpha_pattern": {"v_proj": 6, "layers.1.mlp.gate_proj": 20},
    },
    "a head trained whole": {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["embed_tokens"]},
}


def write_adapter(hf: Path, directory: Path, **options) -> Path:
    """A LoRA of random numbers, as PEFT saves it."""
    import peft

    torch.manual_seed(7)
    model = peft.get_peft_model(load_llama(hf), peft.LoraConfig(**{"r": 4, "lora_alpha": 8, **options}))
    for name, weight in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(str(directory))
    merged = model.merge_and_unload()
    merged.save_pretrained(str(directory / "merged"))
    return directory


@pytest.mark.parametrize("name", ADAPTERS)
def test_merging_is_pefts(name, tmp_path, monkeypatch):
    monkeypatch.setattr(adapters, "_BLOCK_BYTES", 5000)  # several rows at a time, not all
    hf = write_llama(tmp_path / "hf")
    adapter = write_adapter(hf, tmp_path / "adapter", **ADAPTERS[name])
    final = import_hf(hf, tmp_path / "ckpt", adapter=adapter)
    export_hf(tmp_path / "ckpt", tmp_path / "out")
    plain, expected, found = (load_file(path / "model.safetensors") for path in (hf, adapter / "merged", tmp_path / "out"))
    assert expected.keys() == found.keys()
    changed = [tensor for tensor in plain if not torch.equal(plain[tensor], found[tensor])]
    assert changed == [tensor for tensor in plain if not torch.equal(plain[tensor], expected[tensor])] != []
    for tensor in expected:
        torch.testing.assert_close(found[tensor], expected[tensor], rtol=1e-5, atol=1e-6)
    assert import_hf(hf, tmp_path / "ckpt", adapter=adapter) == final
    with pytest.raises(LatxaError, match="holds another checkpoint"):
        import_hf(hf, tmp_path / "ckpt")


def test_a_bf16_model_is_changed_in_fp32(tmp_path):
    hf = write_llama(tmp_path / "hf", dtype=torch.bfloat16)
    adapter = write_adapter(hf, tmp_path / "adapter", target_modules=["q_proj"])
    import_hf(hf, tmp_path / "ckpt", adapter=adapter)
    export_hf(tmp_path / "ckpt", tmp_path / "out")
    assert verify(hf, tmp_path / "ckpt", adapter=adapter).tensors == 39
    with pytest.raises(LatxaError, match=r"; an adapter was merged into it, name that with --adapter$"):
        verify(hf, tmp_path / "ckpt")
    change = load_file(adapter / "adapter_model.safetensors")
    name = "model.layers.2.self_attn.q_proj"
    a, b = (change[f"base_model.model.{name}.lora_{x}.weight"].double() for x in "AB")
    weight = load_file(hf / "model.safetensors")[f"{name}.weight"].double()
    found = load_file(tmp_path / "out" / "model.safetensors")[f"{name}.weight"]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), weight + 2 * b @ a, rtol=2**-8, atol=0)  # half a unit in the last place


def _config(adapter: Path, **values) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def _tensors(adapter: Path, edit) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)


Q = "base_model.model.model.layers.0.self_attn.q_proj"

REFUSED = {
    "no LoRA": (lambda a: _config(a, peft_type="IA3"), "is not the configuration of a LoRA"),
    "PiSSA": (lambda a: _config(a, init_lora_weights="pissa"), "changes the model it belongs to; merge it with PEFT"),
    "activated": (
        lambda a: _config(a, alora_invocation_tokens=[5, 6]),
        "is an activated LoRA, which is not there before",
    ),
    "DoRA by its configuration": (lambda a: _config(a, use_dora=True), "is DoRA; only plain ones are merged"),
    "no alpha": (lambda a: _config(a, lora_alpha=None), "has no lora_alpha"),
    "DoRA": (
        lambda a: _tensors(a, lambda t: t.update({f"{Q}.lora_magnitude_vector.weight": torch.ones(64)})),
        "lora_magnitude_vector.weight is not of a LoRA of linear layers",
    ),
    "another model": (
        lambda a: _tensors(a, lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(4, 32)})),
        r"the LoRA of model.layers.0.self_attn.q_proj.weight has the shapes \[\(4, 32\), \(64, 4\)\]",
    ),
    "a layer too many": (
        lambda a: _tensors(a, lambda t: t.update({f"{Q.replace('.0.', '.7.')}.lora_A.weight": torch.ones(4, 64)})),
        "changes model.layers.7.self_attn.q_proj.weight, which the model does not have",
    ),
    "half of one": (lambda a: _tensors(a, lambda t: t.pop(f"{Q}.lora_B.weight")), r"has the shapes \[\(4, 64\), None\]"),
    "no weights": (lambda a: (a / "adapter_model.safetensors").unlink(), "only adapters in safetensors are read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_merged_is_refused(name, tmp_path):
    spoil, message = REFUSED[name]
    hf = write_llama(tmp_path / "hf")
    adapter = write_adapter(hf, tmp_path / "adapter", target_modules=["q_proj"])
    spoil(adapter)
    with pytest.raises(LatxaError, match=message):
        import_hf(hf, tmp_path / "ckpt", adapter=adapter)
    assert not (tmp_path / "ckpt").exists()


@pytest.mark.parametrize("same", [False, True])
def test_an_embedding_without_its_tied_head_is_refused(same, tmp_path):
    """To PEFT the head keeps the old embedding: no tied model computes the same."""
    hf = write_llama(tmp_path / "hf", tied=True)
    adapter = write_adapter(hf, tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    own = "model.embed_tokens.weight"
    if same:  # as PEFT's save_embedding_layers=True saves one that was not trained
        _tensors(adapter, lambda t: t.update({f"base_model.model.{own}": load_file(hf / "model.safetensors")[own]}))
        import_hf(hf, tmp_path / "ckpt", adapter=adapter)
        return
    with pytest.raises(LatxaError, match=r"changes model.embed_tokens.weight, and not the head that is tied to it; merge"):
        import_hf(hf, tmp_path / "ckpt", adapter=adapter)
