import json

import pytest
import yaml


@pytest.fixture
def run_file(tmp_path):
    hf = tmp_path / "hf"
    hf.mkdir()
    config = {"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336}
    config |= {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5}
    (hf / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8192, "rope_theta": 500000.0}))
    run = {"name": "r", "out": "out", "model": {"hf": str(hf)}, "data": {"store": "s", "plan": "p"}, "train": {"steps": 10}}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(run | {"optimizer": {}}))
    return file
