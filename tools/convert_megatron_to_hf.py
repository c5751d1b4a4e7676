"""Write a Megatron torch_dist checkpoint of a Llama model as a Hugging Face directory.

    python tools/convert_megatron_to_hf.py --checkpoint run/checkpoints --out exported

--load-dir and --save-dir are other names of --checkpoint and --out. The same as `latxa convert export`. CKPT is one
iter_* directory, or a directory of them, of which the newest is taken. HF is a directory of the same model; without
--like it is what the import kept. Exit status 2 with one sentence on stderr where the checkpoint cannot be converted.
"""

import argparse
import warnings
from pathlib import Path

from latxa_megatron.errors import LatxaError


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[2], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", "--load-dir", type=Path, required=True, metavar="CKPT", help="Megatron checkpoint to read"
    )
    parser.add_argument("--out", "--save-dir", type=Path, required=True, metavar="DIR", help="directory to write")
    parser.add_argument("--like", type=Path, metavar="HF", help="Hugging Face directory with the configuration to copy")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # megatron-core warns of each optional package that is not there
    from latxa_megatron.convert.exporter import export_hf

    try:
        export_hf(args.checkpoint, args.out, args.like)
    except LatxaError as error:
        parser.exit(2, f"error: {error}\n")
    print(args.out)


if __name__ == "__main__":
    main()
