"""Write a Megatron torch_dist checkpoint as a Hugging Face directory.

    python tools/convert_megatron_to_hf.py --load-dir run/checkpoints --save-dir exported

--checkpoint and --out are other names of --load-dir and --save-dir, and so are Megatron-Bridge's --megatron-path and --hf-path;
its --hf-model is --like. Beside --load-dir, --megatron-path is Megatron-LM's own directory, as in its converter, and not used.
The same as `latxa convert export`. CKPT is one torch_dist directory, or a directory of them, of which the newest is taken. HF is
the same model as a Hugging Face directory; without --like it is what the import kept. Exit status 2 with one sentence on stderr
where the checkpoint cannot be converted.
"""

import argparse
import warnings
from pathlib import Path

from latxa_megatron.errors import LatxaError

NEEDLESS = ("--model-type", "--loader", "--saver")
NEEDLESS_SWITCHES = ("--no-progress", "--trust-remote-code")


def workers(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[2], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--load-dir", "--checkpoint", dest="checkpoint", type=Path, metavar="CKPT", help="to read")
    parser.add_argument("--megatron-path", type=Path, metavar="CKPT", help="the same, without --load-dir")
    parser.add_argument(
        *("--save-dir", "--out", "--hf-path"), dest="out", type=Path, required=True, metavar="DIR", help="directory to write"
    )
    parser.add_argument("--like", "--hf-model", dest="like", metavar="HF", help="the same model, for configuration and tokenizer")
    parser.add_argument("--workers", type=workers, default=2, metavar="N", help="threads")
    for flag in NEEDLESS:
        parser.add_argument(flag, help=argparse.SUPPRESS)
    for flag in NEEDLESS_SWITCHES:
        parser.add_argument(flag, action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    checkpoint = args.checkpoint or args.megatron_path
    if checkpoint is None:
        parser.error("the following arguments are required: --load-dir/--checkpoint")
    warnings.simplefilter("ignore")  # megatron-core warns of each optional package that is not there
    from latxa_megatron.convert.exporter import export_hf
    from latxa_megatron.convert.hf import local_directory

    try:
        export_hf(checkpoint, args.out, local_directory(args.like) if args.like else None, workers=args.workers)
    except (LatxaError, OSError) as error:  # OSError: no permission, a full disk; it names its file
        parser.exit(2, f"error: {error}\n")
    print(args.out)


if __name__ == "__main__":
    main()
