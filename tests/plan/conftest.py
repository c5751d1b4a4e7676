import json

import pytest
import yaml

LLAMA_8B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
}


def write_model(directory, **sizes):
    """A directory with the config.json of an 8B, or of other sizes."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({**LLAMA_8B, **sizes}))
    return directory


@pytest.fixture
def run_file(tmp_path):
    hf = write_model(tmp_path / "hf")
    run = {"name": "r", "out": "out", "model": {"hf": str(hf)}, "data": {"store": "s", "plan": "p"}, "train": {"steps": 10}}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(run | {"optimizer": {}}))
    return file
