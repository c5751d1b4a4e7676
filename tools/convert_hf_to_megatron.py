"""Write a Hugging Face directory of a model as a Megatron torch_dist checkpoint.

    python tools/convert_hf_to_megatron.py --load-dir Llama-3.1-8B --save-dir checkpoints/Llama-3.1-8B

--hf and --out are other names of --load-dir and --save-dir, and so are Megatron-Bridge's --hf-model and --megatron-path; beside
--save-dir the latter is Megatron-LM's own directory, as in its converter, and not used. The same as `latxa convert import`. The
checkpoint is SAVE/iter_0000000 and loads at any parallel layout: what these programs' converters want to know beyond that
(--target-tensor-parallel-size, --tokenizer-model, --bf16 and the like) is accepted and changes nothing. The weights keep their
type; who loads them turns them into the model's. One process and no GPU are enough. Exit status 2 with one sentence on stderr
where the directory cannot be converted.
"""

import argparse
import warnings
from pathlib import Path

from latxa_megatron.errors import LatxaError

NEEDLESS = (
    *("--model-type", "--loader", "--saver", "--checkpoint-type", "--model-size", "--tokenizer-model"),
    *("--loader-transformer-impl", "--saver-transformer-impl", "--torch-dtype", "--device-map"),
)
NEEDLESS_SIZES = (
    *(f"--target-{kind}-parallel-size" for kind in ("tensor", "pipeline", "expert")),
    *("--make-vocab-size-divisible-by", "--max-queue-size"),
)
NEEDLESS_SWITCHES = ("--bf16", "--fp16", "--no-checking", "--trust-remote-code")


def workers(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[2], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        *("--load-dir", "--hf", "--hf-model"), dest="hf", required=True, metavar="DIR_OR_ID", help="Hugging Face directory"
    )
    parser.add_argument("--save-dir", "--out", dest="out", type=Path, metavar="SAVE", help="to write")
    parser.add_argument("--megatron-path", type=Path, metavar="SAVE", help="the same, without --save-dir")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="LoRA that PEFT saved, to be merged into the weights")
    parser.add_argument("--workers", type=workers, default=2, metavar="N", help="threads")
    for flag in NEEDLESS:
        parser.add_argument(flag, help=argparse.SUPPRESS)
    for flag in NEEDLESS_SIZES:
        parser.add_argument(flag, type=int, help=argparse.SUPPRESS)
    for flag in NEEDLESS_SWITCHES:
        parser.add_argument(flag, action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    out = args.out or args.megatron_path
    if out is None:
        parser.error("the following arguments are required: --save-dir/--out")
    warnings.simplefilter("ignore")  # megatron-core warns of each optional package that is not there
    from latxa_megatron.convert.hf import local_directory
    from latxa_megatron.convert.importer import import_hf

    try:
        print(import_hf(local_directory(args.hf), out, adapter=args.adapter, workers=args.workers))
    except (LatxaError, OSError) as error:  # OSError: no permission, a full disk; it names its file
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
