"""Write a Hugging Face directory of a Llama model as a Megatron torch_dist checkpoint.

    python tools/convert_hf_to_megatron.py --hf Llama-3.1-8B --out checkpoints/Llama-3.1-8B

--load-dir and --save-dir are other names of --hf and --out. The same as `latxa convert import`. The checkpoint is
SAVE/iter_0000000 and loads at any parallel layout; one process and no GPU are enough. Exit status 2 with one sentence
on stderr where the directory cannot be converted.
"""

import argparse
import warnings
from pathlib import Path

from latxa_megatron.errors import LatxaError


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[2], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hf", "--load-dir", type=Path, required=True, metavar="DIR", help="Hugging Face directory")
    parser.add_argument("--out", "--save-dir", type=Path, required=True, metavar="SAVE", help="checkpoint to write")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # megatron-core warns of each optional package that is not there
    from latxa_megatron.convert.importer import import_hf

    try:
        print(import_hf(args.hf, args.out))
    except LatxaError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
