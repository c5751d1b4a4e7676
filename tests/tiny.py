"""Tiny random Llamas and relatives as Hugging Face directories, and token stores of given documents, instead of real ones."""

from pathlib import Path

import numpy as np
import torch

from latxa_megatron import _core
from latxa_megatron.data.store import FORMAT, MANIFEST, VERSION, manifest_fingerprint
from latxa_megatron.files import sha256, write_json

LLAMA31_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def write_llama(
    directory: Path,
    *,
    tied: bool = False,
    rope: dict | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 1,
    max_shard_size: str = "5GB",
    family: str = "Llama",
    **sizes: int,
) -> Path:
    """A random Llama with grouped-query attention: 4 layers, hidden 64, 8 heads, 4 key-value heads, vocabulary 128.

    family: or what else transformers calls FAMILYForCausalLM.
    """
    import transformers

    config = getattr(transformers, f"{family}Config")(
        **{
            "vocab_size": 128,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "max_position_embeddings": 256,
            **sizes,
        },
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
        dtype=dtype,
    )
    config.rope_parameters = {"rope_theta": 50000.0, **(rope or {"rope_type": "default"})}
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, weight in model.named_parameters():  # norms of 1 and biases of 0 would hide one that is mixed up
        if "norm" in name or "bias" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    model.to(dtype).save_pretrained(str(directory), max_shard_size=max_shard_size)
    return directory


def load_llama(directory: Path, dtype: torch.dtype = torch.float32):
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(str(directory), dtype=dtype, attn_implementation="eager").eval()


def write_store(
    directory: Path,
    documents: list[list[int]],
    spans: list[list[tuple[int, int]]],
    vocab: int = 128,
    source: str = "tiny",
) -> Path:
    """A store of one shard, as `latxa data build` would write it."""
    directory.mkdir(parents=True)
    writer = _core.ShardWriter(str(directory / "00000"), 8, True)
    for tokens, trained in zip(documents, spans, strict=True):
        writer.add(np.array(tokens, np.int32), np.array(trained, np.int32).reshape(-1, 2))
    writer.finish()
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "tokenizer": {"fingerprint": "tiny", "vocab_size": vocab, "bos": None, "document_end": 0, "template": None},
        "settings": {},
        "sources": {source: {"hold_out": 0.0, "files": []}},
        "mask": "spans",
        "shards": [
            {
                "name": "00000",
                "source": source,
                "documents": writer.documents,
                "tokens": writer.tokens,
                "trained_tokens": writer.trained_tokens,
                "sha256": {suffix: sha256(directory / f"00000.{suffix}") for suffix in ("bin", "idx", "mask")},
            }
        ],
    }
    manifest["fingerprint"] = manifest_fingerprint(manifest)
    write_json(directory / MANIFEST, manifest)
    return directory


def random_documents(count: int, vocab: int = 128, longest: int = 40, seed: int = 0):
    """(documents, spans): a learnable pattern with some noise; each second document is trained in its second half only."""
    random = np.random.default_rng(seed)
    documents, spans = [], []
    for i in range(count):
        n = int(random.integers(4, longest))
        tokens = [int(random.integers(vocab))]
        for _ in range(n - 1):
            tokens.append((tokens[-1] * 5 + 7 + int(random.integers(3))) % vocab)
        documents.append(tokens)
        spans.append([(0, n)] if i % 2 else [(n // 2, n)])
    return documents, spans
