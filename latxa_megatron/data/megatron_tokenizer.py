"""A tokenizer as Megatron-LM's --tokenizer-type HuggingFaceTokenizer uses it: ids are what transformers gives for a text."""

import numpy as np

from latxa_megatron.data.engine import Engine, Flat, HuggingFace, inserted, prove
from latxa_megatron.errors import LatxaError

_HARD = ["", " ", "a", "elektriko\u00a0batua <|eot_id|></s> x"]


class MegatronTokenizer:
    """Raises LatxaError where transformers cannot load it, or has no fast implementation of it.

    around: whether there is what the tokenizer puts before and after a text, such as Llama's BOS.
    """

    def __init__(self, name: str, *, around: bool = True, trust_remote_code: bool = False) -> None:
        import transformers

        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
            self._backend = self._tokenizer.backend_tokenizer
        except Exception as error:
            why = str(error).strip().partition("\n")[0]
            raise LatxaError(f"--tokenizer-model {name}: transformers loads no tokenizer.json from it ({why})") from None
        self._backend.no_padding()
        self._backend.no_truncation()
        self._engine: Engine = HuggingFace(self._backend)
        self.eod: int | None = self._tokenizer.eos_token_id
        self.dtype = np.uint16 if len(self._tokenizer) < 65500 else np.int32
        self._before, self._after = self._around() if around else ([], [])
        for text in _HARD if around else []:
            if self.encode([text])[0].tolist() != self._tokenizer(text).input_ids:
                raise LatxaError(f"--tokenizer-model {name}: what it puts around a text is not the same for all texts")

    def _around(self) -> tuple[list[int], list[int]]:
        """Ids that the tokenizer puts before a text, and after it."""
        bare = self._backend.encode("a", add_special_tokens=False).ids
        whole = self._backend.encode("a").ids
        for at in range(len(whole) - len(bare) + 1):
            if whole[at : at + len(bare)] == bare:
                return whole[:at], whole[at + len(bare) :]
        return [], []

    def accelerate(self, texts: list[str]) -> str:
        """Let encode use a faster library if it gives the same ids for these texts; says which runs, and why."""
        self._engine, why = prove(self._backend, texts)
        return f"{self._engine.name} ({why})"

    @property
    def accelerated(self) -> bool:
        return not isinstance(self._engine, HuggingFace)

    def encode(self, texts: list[str]) -> Flat:
        """(ids int32 [n], offsets int64 [len(texts) + 1]) of texts laid end to end, with what stands around each."""
        ids, offsets = self._engine.encode(texts)
        around = [*self._before, *self._after]
        if not around:
            return ids, offsets
        at = np.repeat([offsets[:-1], offsets[1:]], [len(self._before), len(self._after)], axis=0).T
        return inserted(ids, at.ravel(), np.tile(around, len(texts))), offsets + len(around) * np.arange(len(offsets))
