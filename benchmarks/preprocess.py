"""tools/preprocess_data.py beside Megatron-LM's two tools: the same bytes, million tokens per CPU second, peak memory.

    python benchmarks/preprocess.py --megatron ../Megatron-LM --tokenizer models/Llama-3.1-8B --corpus corpus.jsonl

--megatron: a checkout of https://github.com/NVIDIA/Megatron-LM, whose tools/ are run as they are, with the checkout's own
megatron-core; preprocess_data_fast.py needs gigatoken and awkward. Each run is a process with one worker, one thread to each
library, on a quarter of the input and on all of it; the CPU seconds of the two tell apart what a start costs and what each
further token does. preprocess_data.py is slow, and gets the first 1 and 3 MB; ours runs on these too, to compare the bytes.
preprocess_data_fast.py leaves out what the tokenizer puts before a text (Llama's BOS), and is compared with ours without it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from filecmp import cmp
from pathlib import Path

import numpy as np

ONE_THREAD = {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
RUN = (
    "import runpy, sys, typing; typing.override = lambda f: f; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
)
"""Megatron-LM takes typing.override from Python 3.12, and needs no more of it."""


def first_lines(file: Path, size: int, out: Path) -> Path:
    with file.open("rb") as lines, out.open("wb") as beginning:
        for line in lines:
            if beginning.tell() and beginning.tell() + len(line) > size:
                break
            beginning.write(line)
    return out


def measured(tool: Path, arguments: list[str], prefix: Path, megatron: Path | None) -> dict[str, float]:
    """tokens, CPU seconds (user and system, of all its processes) and peak MB of a run of a tool."""
    command = [sys.executable, "-c", RUN] if megatron else [sys.executable]
    path = {"PYTHONPATH": str(megatron)} if megatron else {}
    with (prefix.parent / "log").open("w+") as log:
        process = subprocess.Popen(
            [*command, str(tool), *arguments, "--output-prefix", str(prefix)],
            env={**os.environ, **ONE_THREAD, **path}, stdout=log, stderr=log,
        )  # fmt: skip
        _, status, used = os.wait4(process.pid, 0)
        if status:
            log.seek(0)
            sys.exit(f"{tool} ended with {status}: {log.read()[-4000:]}")
    index = Path(f"{prefix}_text_document.idx").read_bytes()
    tokens = np.frombuffer(index, np.int32, int.from_bytes(index[18:26], "little"), 34).sum(dtype=np.int64)
    return {"tokens": float(tokens), "cpu": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss / 1e3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megatron", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True, help="one JSONL file with 'text'")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()), help="where outputs are written and removed")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    megatron = args.megatron.resolve()
    ours = Path(__file__).parents[1] / "tools" / "preprocess_data.py"
    theirs, fast = (megatron / "tools" / name for name in ("preprocess_data.py", "preprocess_data_fast.py"))
    model = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(args.tokenizer.resolve()), "--append-eod"]
    with tempfile.TemporaryDirectory(dir=args.out) as name:
        place = Path(name)
        size = args.corpus.stat().st_size
        inputs = [first_lines(args.corpus, n, place / f"{i}.jsonl") for i, n in enumerate((1 << 20, 3 << 20, size // 4, size))]
        ways = {
            "this tool": (ours, ["--workers", "1"], None, inputs),
            "this tool, without BOS": (ours, ["--workers", "1", "--tokenizer-hf-no-include-special-tokens"], None, inputs[2:]),
            "Megatron-LM's preprocess_data.py": (theirs, ["--workers", "1"], megatron, inputs[:2]),
            "Megatron-LM's preprocess_data_fast.py": (fast, ["--use-gigatoken"], megatron, inputs[2:]),
        }
        found: dict[str, list[list[dict[str, float]]]] = {way: [] for way in ways}
        for _ in range(args.repeats):
            for i, (way, (tool, options, checkout, files)) in enumerate(ways.items()):
                prefixes = [place / f"{i}-{file.stem}" for file in files]
                runs = [
                    measured(tool, [*model, *options, "--input", str(file)], prefix, checkout)
                    for file, prefix in zip(files, prefixes, strict=True)
                ]
                found[way].append(runs[-2:])
        for mine, other in ((0, 2), (1, 3)):
            files = list(ways.values())[other][-1]
            names = [f"{file.stem}_text_document.{suffix}" for file in files for suffix in ("bin", "idx")]
            same = all(cmp(place / f"{mine}-{name}", place / f"{other}-{name}", shallow=False) for name in names)
            print(f"{list(ways)[other]}, {list(ways)[mine]}: {'the same bytes' if same else 'OTHER BYTES'}")
    print("| tool | tokens | million tokens per CPU second | ours is faster by | start, CPU seconds | MB at most |")
    print("| --- | --- | --- | --- | --- | --- |")
    rates = {}
    for way, runs in found.items():
        less, more = ({key: min(pair[i][key] for pair in runs) for key in runs[0][i]} for i in (0, 1))
        rates[way] = (more["tokens"] - less["tokens"]) / (more["cpu"] - less["cpu"]) / 1e6
        start = more["cpu"] - more["tokens"] / rates[way] / 1e6
        ratio = rates["this tool"] / rates[way]
        print(f"| {way} | {more['tokens']:,.0f} | {rates[way]:.2f} | {ratio:.1f} | {start:.1f} | {more['peak_mb']:,.0f} |")


if __name__ == "__main__":
    main()
