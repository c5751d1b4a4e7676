"""Runs a model as transformers and as megatron-core compute it, layer by layer, with one layer of each in memory, in fp32.

transformers gets its layer from the Hugging Face directory, and megatron-core its own from the checkpoint, by the names that
its modules say they are saved under. Embedding and head are looked up and applied to each side's states alike.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from latxa_megatron.convert.hf import HfTensors
from latxa_megatron.convert.megatron import MegatronTensors
from latxa_megatron.convert.names import EMBEDDING, FINAL_NORM, HEAD
from latxa_megatron.convert.threads import PIECE_BYTES
from latxa_megatron.model.gpt import build_model
from latxa_megatron.model.layout import Layout, Precision
from latxa_megatron.model.llama import LlamaShape
from latxa_megatron.train import checkpoint
from latxa_megatron.train.distributed import connected, spread

RANDOM_TOKENS = 48
TEXT = "Euskara da munduko hizkuntzarik bereziena: ez dauka ahaiderik, eta milaka urteko historia du. 1968an batu zen."


class Difference(NamedTuple):
    """largest: of any value. relative: the norm of the difference over the norm of what transformers computes."""

    largest: float
    relative: float


def run_layers(
    hf: Path,
    shape: LlamaShape,
    theirs: HfTensors,
    ours: MegatronTensors,
    report: Callable[[int], None],
) -> tuple[int, list[Difference], Difference]:
    """(tokens that were run, how far apart the two are after each layer, and in the logits).

    The tokens are random ones, and a sentence where the directory has a tokenizer.json. report: told of how many layers are done.
    """
    sequences = _sequences(hf, shape.vocab)
    found = []
    with torch.no_grad(), connected():
        spread(Layout(), seed=1)
        one, other = _Transformers(hf, theirs), _MegatronCore(shape, ours)
        states = [torch.cat([theirs.read(EMBEDDING.hf[0], i, i + 1) for i in tokens]).float() for tokens in sequences]
        pairs = [(state, state) for state in states]
        for layer in range(shape.layers):
            one.load(layer)
            other.load(layer)
            pairs = [(one(a), other(b)) for a, b in pairs]
            found.append(_difference(pairs))
            report(layer + 1)
        pairs = [(one.norm(a), other.norm(b)) for a, b in pairs]
        head = EMBEDDING if shape.tied else HEAD
        logits = [
            (torch.cat([a @ rows.float().T for a, _ in pairs]), torch.cat([b @ rows.float().T for _, b in pairs]))
            for rows in theirs.blocks(head.hf[0], PIECE_BYTES)
        ]
    return sum(map(len, sequences)), found, _difference(logits)


def _sequences(hf: Path, vocab: int) -> list[list[int]]:
    random = torch.randint(vocab, (RANDOM_TOKENS,), generator=torch.Generator().manual_seed(0)).tolist()
    if not (hf / "tokenizer.json").is_file():
        return [random]
    text = transformers.PreTrainedTokenizerFast(tokenizer_file=str(hf / "tokenizer.json")).encode(TEXT)
    return [random, [token for token in text if token < vocab]]


def _difference(pairs: list[tuple[Tensor, Tensor]]) -> Difference:
    apart = [(a - b).double() for a, b in pairs]
    norm = math.sqrt(sum(float(a.double().square().sum()) for a, _ in pairs))
    far = math.sqrt(sum(float(each.square().sum()) for each in apart))
    return Difference(max(float(each.abs().max()) for each in apart), far / norm if norm else far)


class _Transformers:
    """One layer of the model as transformers builds it."""

    def __init__(self, hf: Path, tensors: HfTensors) -> None:
        config = transformers.AutoConfig.from_pretrained(hf)
        config.num_hidden_layers, config.vocab_size, config.pad_token_id = 1, 1, None
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:1]
        self._model: Any = transformers.AutoModel.from_config(config, dtype=torch.float32, attn_implementation="eager")
        self._model.norm.weight.copy_(tensors.read(FINAL_NORM.hf[0]))
        self.norm, self._model.norm = self._model.norm, torch.nn.Identity()
        self._tensors = tensors

    def load(self, layer: int) -> None:
        for name, weight in self._model.layers[0].named_parameters():
            weight.copy_(self._tensors.read(f"model.layers.{layer}.{name}"))

    def __call__(self, states: Tensor) -> Tensor:
        """[tokens, hidden] after the layer."""
        found: Tensor = self._model(inputs_embeds=states[None], use_cache=False).last_hidden_state[0]
        return found


class _MegatronCore:
    """One layer of the model as megatron-core builds it."""

    def __init__(self, shape: LlamaShape, tensors: MegatronTensors) -> None:
        self._tensors = tensors
        model = build_model(replace(shape, layers=1, vocab=1), Layout(), Precision(torch.float32))[0]
        self._decoder, self._angles = model.decoder, model.rotary_pos_emb
        self.norm, self._decoder.final_layernorm = self._decoder.final_layernorm, None
        self.norm.weight.copy_(next(tensors.pieces(FINAL_NORM, 0, 0, PIECE_BYTES)))

    def load(self, layer: int) -> None:
        module = self._decoder.layers[0]
        for name, stored in module.sharded_state_dict("", (), dict(checkpoint.CONTENT)).items():
            if isinstance(stored, ShardedTensor | ShardedTensorFactory):
                module.get_parameter(name).copy_(self._tensors.of_layer(stored.key, layer))

    def __call__(self, states: Tensor) -> Tensor:
        """[tokens, hidden] after the layer."""
        borders = torch.tensor([0, len(states)], dtype=torch.int32)
        packed = PackedSeqParams("thd", borders, borders, max_seqlen_q=len(states), max_seqlen_kv=len(states))
        found: Tensor = self._decoder(states[:, None], None, rotary_pos_emb=self._angles(len(states)), packed_seq_params=packed)
        return found[:, 0]
