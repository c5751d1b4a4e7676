"""Hugging Face directories with a LoRA of PEFT's merged in, some rows at a time.

A weight becomes W + s B A, in fp32, rounded to the type of W: s is alpha / r, or alpha / sqrt(r) in rank-stabilized ones
(https://arxiv.org/abs/2106.09685, https://arxiv.org/abs/2312.03732). A tensor that was trained whole stands in the adapter's
file and takes the place of the model's.
"""

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latxa_megatron.convert.hf import HfTensors, Tensors, places
from latxa_megatron.convert.names import EMBEDDING, HEAD
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import fingerprint, read_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
_BASE = ".base_layer."
"""In the name of a weight that PEFT kept beside the LoRA of it, as it does of heads."""
_BLOCK_BYTES = 8 << 20
_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Of init_lora_weights: those that leave the model's own weights as they are."""
_NOT_PLAIN = {
    "use_dora": "DoRA",
    "alora_invocation_tokens": "an activated LoRA, which is not there before its tokens are",
    "use_qalora": "QALoRA",
    "use_bdlora": "a LoRA of blocks",
    "kasa_config": "KaSA",
    "monteclora_config": "a LoRA of random draws",
    "arrow_config": "one of several LoRAs among which is chosen token by token",
}
"""Keys of the configuration which, where they are set, say that a weight does not become W + s B A."""


class _Change(NamedTuple):
    """The adapter's tensors A [r, columns] and B [rows, r], by name, and what their product is multiplied with."""

    a: str
    b: str
    scale: float


class AdaptedTensors(HfTensors):
    """The tensors of a directory, changed by an adapter. Raises LatxaError for one that is no LoRA, or of another model."""

    def __init__(self, directory: Path, adapter: Path) -> None:
        super().__init__(directory)
        if not (adapter / WEIGHTS).is_file():
            raise LatxaError(f"{adapter}: has no {WEIGHTS}; only adapters in safetensors are read")
        self._adapter = Tensors(places(adapter / WEIGHTS))
        self._adapter_config = _config(adapter / CONFIG)
        self._changes: dict[str, _Change] = {}
        self._replaced: dict[str, str] = {}
        for name in self._adapter.names():
            self._take(adapter / WEIGHTS, name)
        self._check_tied(directory / "config.json", adapter / WEIGHTS)

    def files(self) -> list[Path]:
        return [*super().files(), *self._adapter.files()]

    def settings(self) -> dict[str, str]:
        return {**super().settings(), "adapter": fingerprint(self._adapter_config)}

    def read_into(self, target: Tensor, name: str, start: int) -> None:
        if name in self._replaced:
            target.copy_(self._adapter.read(self._replaced[name], start, start + len(target)))
        else:
            super().read_into(target, name, start)
        if name not in self._changes:
            return
        a, b, scale = self._changes[name]
        right = self._adapter.read(a).float()
        step = max(1, _BLOCK_BYTES // (4 * right.shape[1]))
        for first in range(0, len(target), step):
            rows = target[first : first + step]
            left = self._adapter.read(b, start + first, start + first + len(rows)).float()
            rows.copy_(rows.float() + (left @ right) * scale)

    def _check_tied(self, config: Path, path: Path) -> None:
        """PEFT trains a copy of an embedding, and leaves a head that is tied to it with the numbers from before."""
        own = EMBEDDING.hf[0]
        if own not in self._replaced or HEAD.hf[0] in self or not read_json(config).get("tie_word_embeddings"):
            return
        before = Tensors({own: self.place(own)}).blocks(own, _BLOCK_BYTES)
        if not all(torch.equal(one, other) for one, other in zip(before, self.blocks(own, _BLOCK_BYTES), strict=True)):
            raise LatxaError(f"{path}: changes {own}, and not the head that is tied to it; merge the adapter with PEFT")

    def _take(self, path: Path, name: str) -> None:
        """Say what a tensor of the adapter is for."""
        module = name.removeprefix(_PREFIX)
        whole = module.replace(_BASE, ".")
        if whole in self and self.place(whole).shape == self._adapter.place(name).shape:
            self._replaced[whole] = name
            return
        stem = module.removesuffix(_A).removesuffix(_B)
        own, a, b = f"{stem}.weight", f"{_PREFIX}{stem}{_A}", f"{_PREFIX}{stem}{_B}"
        if name not in (a, b):
            raise LatxaError(f"{path}: {name} is not of a LoRA of linear layers; merge the adapter with PEFT")
        if own not in self:
            raise LatxaError(f"{path}: changes {own}, which the model does not have")
        shapes = [self._adapter.place(each).shape if each in self._adapter else None for each in (a, b)]
        rank = self._adapter.place(name).shape[0 if name == a else -1]
        if shapes != [(rank, self.place(own).shape[1]), (self.place(own).shape[0], rank)]:
            raise LatxaError(f"{path}: the LoRA of {own} has the shapes {shapes}; that of the model is {self.place(own).shape}")
        alpha = next(
            (value for key, value in self._adapter_config["alpha_pattern"].items() if re.fullmatch(rf"(.*\.)?({key})", stem)),
            self._adapter_config["lora_alpha"],
        )
        root = self._adapter_config.get("use_rslora", False)
        self._changes[own] = _Change(a, b, alpha / (math.sqrt(rank) if root else rank))


def _config(file: Path) -> dict[str, Any]:
    config = read_json(file)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise LatxaError(f"{file}: is not the configuration of a LoRA")
    if config.get("init_lora_weights", True) not in _STARTS or config.get("layer_replication"):
        raise LatxaError(f"{file}: this kind of LoRA changes the model it belongs to; merge it with PEFT")
    if other := next((what for key, what in _NOT_PLAIN.items() if config.get(key)), None):
        raise LatxaError(f"{file}: is {other}; only plain ones are merged")
    if not isinstance(config.get("lora_alpha"), int | float):
        raise LatxaError(f"{file}: has no lora_alpha")
    return {**config, "alpha_pattern": config.get("alpha_pattern") or {}}
