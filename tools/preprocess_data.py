"""Tokenize JSONL into Megatron's PREFIX_KEY_document.bin and .idx, with Megatron-LM's own flags and the same bytes.

    python tools/preprocess_data.py --input corpus.jsonl --output-prefix corpus --tokenizer-type HuggingFaceTokenizer \\
        --tokenizer-model models/Llama-3.1-8B --append-eod --workers 8

Takes the place of the tool of that name in Megatron-LM; flags that decide nothing here are taken and left alone. Input is JSONL,
.gz and .zst too; with --partitions above 1 a glob, of which the files are read in the order of their names. A text becomes
what transformers makes of it: control tokens spelled in it are control tokens, and a BOS is there if the tokenizer puts one.
Blank lines are passed over. Exit status 2 with one sentence on stderr for what cannot be done. `latxa data build` is the way
to a store with masks, checked and resumable.
"""

import argparse
import glob
import sys
import time
import warnings
from pathlib import Path

from latxa_megatron.errors import LatxaError

REFUSED = {
    "split_sentences": "sentences are not split here; give their list as the value of the JSON key, or take Megatron-LM's tool",
    "find_optimal_num_workers": "there is nothing to find; take as many --workers as there are cores",
    "vocab_file": "a vocabulary in files of its own is not read; give a directory with tokenizer.json as --tokenizer-model",
    "merge_file": "a vocabulary in files of its own is not read; give a directory with tokenizer.json as --tokenizer-model",
    "tokenizer_metadata": "is not read; give a directory with tokenizer.json as --tokenizer-model",
    "tokenizer_special_tokens": "tokens are not added here; add them to the tokenizer and save it",
    "tokenizer_hf_no_use_fast": "only fast tokenizers are used here; leave it out",
}
"""Flags that would change the output, or are a job of their own."""


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[2], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    take = parser.add_argument
    take("--input", required=True, metavar="JSONL", help="file, or with --partitions a glob")
    take("--output-prefix", required=True, metavar="PREFIX", help="path of the output without _KEY_document.bin")
    take("--json-keys", nargs="+", default=["text"], metavar="KEY", help="keys whose texts are taken, each to files of its own")
    take("--tokenizer-type", required=True, help="HuggingFaceTokenizer, or SentencePieceTokenizer and its like")
    take("--tokenizer-model", required=True, metavar="DIR", help="directory with tokenizer.json, or a name on the hub; a .model")
    take("--append-eod", action="store_true", help="end each document with the tokenizer's end-of-sequence token")
    take("--workers", type=int, required=True, metavar="N", help="processes; the output is the same for any number")
    take("--partitions", type=int, default=1, metavar="P", help="deal documents out to so many parts, one after the other")
    take("--keep-sequential-samples", action="store_true", help="keep the documents' order under --partitions")
    take("--log-interval", type=int, default=1000, metavar="N", help="documents between two lines of progress, at least")
    take("--tokenizer-hf-no-include-special-tokens", action="store_true", help="leave out what the tokenizer puts around a text")
    take("--trust-remote-code", action="store_true", help="let transformers run code that comes with the tokenizer")
    for flag in REFUSED:
        switch = flag.startswith(("split", "find")) or flag.endswith("fast")
        option = f"--{flag.replace('_', '-')}"
        take(option, **({"action": "store_true"} if switch else {"nargs": "+"}), help=argparse.SUPPRESS)
    take("--dataset-impl", choices=["mmap"], help=argparse.SUPPRESS)
    for flag in ("keep-newlines", "use-gigatoken", "legacy-tokenizer", "pad-vocab-size"):
        take(f"--{flag}", f"--no-{flag}", action="store_true", help=argparse.SUPPRESS)
    for flag in ("lang", "max-documents", "vocab-size", "padded-vocab-size", "vocab-extra-ids", "chat-template"):
        take(f"--{flag}", help=argparse.SUPPRESS)
    take("--workers-to-check", nargs="+", help=argparse.SUPPRESS)
    return parser


def run(args: argparse.Namespace) -> None:
    for flag, why in REFUSED.items():
        if getattr(args, flag):
            raise LatxaError(f"--{flag.replace('_', '-')}: {why}")
    from latxa_megatron.data.megatron_tokenizer import TYPES

    if args.tokenizer_type not in TYPES:
        raise LatxaError(
            f"--tokenizer-type {args.tokenizer_type}: is not read here; convert it to a directory with tokenizer.json and say "
            "HuggingFaceTokenizer, or take Megatron-LM's tool"
        )
    for flag in ("workers", "partitions", "log_interval"):
        if getattr(args, flag) < 1:
            raise LatxaError(f"--{flag.replace('_', '-')}: must be 1 or more")
    from latxa_megatron.data.preprocess import Options, preprocess

    files = [Path(args.input)]
    if args.partitions > 1 and not files[0].exists():
        files = [Path(file) for file in sorted(glob.glob(args.input))]  # noqa: PTH207 (takes absolute ones)
    if not files or not all(file.is_file() for file in files):
        raise LatxaError(f"--input {args.input}: there is no such file; a glob is taken with --partitions above 1")
    options = Options(
        tokenizer=args.tokenizer_model,
        tokenizer_type=args.tokenizer_type,
        keys=tuple(dict.fromkeys(args.json_keys)),
        append_eod=args.append_eod,
        include_special_tokens=not args.tokenizer_hf_no_include_special_tokens,
        trust_remote_code=args.trust_remote_code,
        workers=args.workers,
        partitions=args.partitions,
        keep_sequential_samples=args.keep_sequential_samples,
    )
    began, said = time.monotonic(), 0

    def progress(documents: int, size: int) -> None:
        nonlocal said
        if documents // args.log_interval > said // args.log_interval:
            seconds = time.monotonic() - began
            rates = f"({documents / seconds:.0f} docs/s, {size / seconds / 2**20:.1f} MB/s)"
            print(f"Processed {documents} documents {rates}.", file=sys.stderr)
            said = documents

    preprocess(files, args.output_prefix, options, progress)
    for key in options.keys:
        print(f"{args.output_prefix}_{key}_document.bin")


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    try:
        run(args)
    except (LatxaError, OSError) as error:  # OSError: no permission, a full disk; it names its file
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
