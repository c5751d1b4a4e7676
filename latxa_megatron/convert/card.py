"""The README.md of an exported model: what it was made from, by which run, and the hashes of its files."""

from pathlib import Path
from typing import Any

import yaml

from latxa_megatron import __version__

NAME = "README.md"

_FRONT = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- latxa-megatron
---
"""


def model_card(name: str, facts: dict[str, Any], origin: Path, sums: dict[str, str]) -> str:
    """Markdown, with the front matter of the Hugging Face hub.

    facts: run.json of the checkpoint. origin: the directory whose configuration the model has. sums: file name -> SHA-256.
    """
    run = facts.get("run")
    written = [f"{_FRONT}# {run['name'] if run else name}\n"]
    if run:
        train, data = run["train"], run["data"]
        tokens = facts["step"] * train["global_batch"] * data["seq_length"]
        sources = ", ".join(data.get("sources") or []) or "the run's plan"
        written += [
            f"{Path(run['model']['hf']).name}, trained on {sources} with latxa-megatron {facts['latxa_megatron']}.\n",
            "| | |\n| --- | --- |",
            f"| steps | {facts['step']:,} |",
            f"| global batch | {train['global_batch']:,} sequences of {data['seq_length']:,} tokens |",
            f"| tokens, padding included | {tokens:,} |",
            f"| plan of the data | `{facts['plan']}` |\n",
            f"The run file:\n\n```yaml\n{yaml.safe_dump(run, sort_keys=False, allow_unicode=True)}```\n",
        ]
    else:
        written.append(f"The weights of a Megatron checkpoint, exported by latxa-megatron {__version__}.\n")
    written.append("Its licence is that of the model it was made from.\n\n| file | SHA-256 |\n| --- | --- |")
    written += [f"| {file} | `{sum_}` |" for file, sum_ in sums.items()]
    return "\n".join(written) + "\n"
