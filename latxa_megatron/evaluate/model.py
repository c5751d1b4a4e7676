"""Bits per byte of documents, and greedy continuations, of a Hugging Face directory."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from latxa_megatron.data.tokenizer import Tokenizer

CONTEXT = 1024
"""Tokens that a model sees at once; longer documents are read in windows that overlap by half."""


class Evaluated:
    """A model on this machine's best device, in fp32 on a CPU and bf16 on a GPU."""

    def __init__(self, directory: Path) -> None:
        import transformers

        transformers.utils.logging.disable_progress_bar()
        gpu = torch.cuda.is_available()
        self._tokenizer = Tokenizer(directory)
        self._device = torch.device("cuda" if gpu else "cpu")
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            str(directory), dtype=torch.bfloat16 if gpu else torch.float32, local_files_only=True
        ).to(self._device)
        self._model.eval()

    def _prefix(self) -> int:
        """What stands before a document's first token: BOS, or the end of the document before it."""
        bos = self._tokenizer.bos_id
        return self._tokenizer.document_end_id if bos is None else bos

    def bits_per_byte(self, texts: list[str], progress: Callable[[int, int], None] = lambda done, total: None) -> float:
        """-log2 of the probability of all texts, over their bytes in UTF-8: comparable between tokenizers.

        Every token is predicted from its document's tokens before it, at least CONTEXT / 2 of them where there are so many.
        """
        nats = 0.0
        for i, text in enumerate(texts):
            ids, _ = self._tokenizer.encode_with_offsets(text)
            nats += self._nats(ids)
            progress(i + 1, len(texts))
        return nats / math.log(2) / sum(len(text.encode()) for text in texts)

    @torch.inference_mode()
    def _nats(self, ids: list[int]) -> float:
        tokens = torch.tensor([self._prefix(), *ids], device=self._device)
        total, done = 0.0, 1  # tokens [0, done) are predicted already
        while done < len(tokens):
            first = max(0, done - CONTEXT // 2)
            window = tokens[first : first + CONTEXT + 1]
            logits = self._model(window[None, :-1]).logits[0].float()
            new = done - first - 1
            losses = torch.nn.functional.cross_entropy(logits[new:], window[new + 1 :], reduction="sum")
            total += float(losses)
            done = first + len(window)
        return total

    @torch.inference_mode()
    def continuations(self, prompts: list[str], tokens: int = 40) -> list[str]:
        """The most probable next tokens after each prompt, one at a time, prompt not included."""
        texts = []
        for prompt in prompts:
            ids, _ = self._tokenizer.encode_with_offsets(prompt)
            given = torch.tensor([[self._prefix(), *ids]], device=self._device)
            out = self._model.generate(
                given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=self._tokenizer.document_end_id,
                eos_token_id=self._tokenizer.document_end_id,
            )
            new = [int(t) for t in out[0, given.shape[1] :] if int(t) != self._tokenizer.document_end_id]
            texts.append(self._tokenizer.decode(new))
        return texts
