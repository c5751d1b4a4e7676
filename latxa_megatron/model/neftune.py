"""NEFTune: uniform noise on the token embeddings while training (Jain et al., 2023, arXiv:2310.05914).

Each element of the embedding of a sequence of L tokens in d dimensions gets noise from U(-1, 1) * alpha / sqrt(L d). The noise of
a sample depends on the seed and the sample's number alone, so every layout and every resumed run adds the same.
"""

import math
from typing import Literal

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor

from latxa_megatron.files import fingerprint


class Neftune:
    """The noise of a run; attach() it to the model chunk that holds the embedding, and begin() each microbatch."""

    def __init__(self, alpha: float, seed: int, length: Literal["packed", "document"] = "packed") -> None:
        """length: whether L is a sample's positions, or those of the document that a token belongs to."""
        self._alpha, self._seed, self._length = alpha, seed, length
        self._samples: list[int] = []
        self._cu_seqlens = torch.zeros(1, dtype=torch.int32)
        self._places = torch.zeros(0, dtype=torch.int64)

    def attach(self, model: GPTModel) -> None:
        """Add the noise to what the model's embedding gives; nothing where `model` has none, or alpha is 0."""
        if model.pre_process and self._alpha:
            model.embedding.register_forward_hook(lambda module, _, out: out + self._here(out) if module.training else out)

    def begin(self, samples: list[int], cu_seqlens: Tensor, places: Tensor) -> None:
        """Say which samples come next. cu_seqlens: the document borders over their positions laid end to end, int32.

        places: which of those positions this context-parallel rank holds, int64.
        """
        self._samples, self._cu_seqlens, self._places = samples, cu_seqlens, places

    def noise(self, hidden: int, device: torch.device) -> Tensor:
        """float32 [samples, positions, hidden] for the microbatch that was begun."""
        positions = int(self._cu_seqlens[-1]) // len(self._samples)
        found = torch.empty(len(self._samples), positions, hidden, device=device)
        for row, sample in zip(found, self._samples, strict=True):
            seed = int(fingerprint(["neftune", self._seed, sample])[:15], 16)
            row.uniform_(-1, 1, generator=torch.Generator(device).manual_seed(seed))
        if self._length == "packed":
            return found.mul_(self._alpha / math.sqrt(positions * hidden))
        lengths = self._cu_seqlens.diff().long()
        of_position = torch.repeat_interleave(lengths, lengths).view(len(self._samples), positions, 1)
        return found.mul_(self._alpha / (of_position.to(device) * hidden).sqrt())

    def _here(self, out: Tensor) -> Tensor:
        """The noise for `out`, [t, 1, hidden] of this rank's positions; with sequence parallelism its part of them."""
        full = self.noise(out.shape[-1], out.device).reshape(-1, 1, out.shape[-1])[self._places.to(out.device)]
        parts = full.shape[0] // out.shape[0]
        if parts > 1:
            full = full.chunk(parts)[parallel_state.get_tensor_model_parallel_rank()]
        return full.to(out.dtype)
