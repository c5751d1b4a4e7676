"""`latxa convert`: Hugging Face directories to Megatron checkpoints, back, and the proof that they are the same."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal
from rich.table import Table

from latxa_megatron.cli.terminal import OPTIONS, bytes_bar, console

convert = typer.Typer(help="Turn Hugging Face directories into Megatron checkpoints and back.", **OPTIONS)

Hf = Annotated[str, typer.Option(metavar="DIR_OR_ID", help="Hugging Face directory of safetensors, or OWNER/NAME on the hub.")]
Checkpoint = Annotated[
    Path, typer.Option(metavar="CKPT", help="Checkpoint of ours, Megatron-LM's, Megatron-Bridge's or NeMo 2's.")
]
Adapter = Annotated[Path | None, typer.Option(metavar="DIR", help="LoRA that PEFT saved, merged into the weights.")]
Workers = Annotated[int, typer.Option(min=1, help="Threads; the result is the same for any number.")]


@convert.command("import")
def convert_import(
    hf: Hf,
    out: Annotated[Path, typer.Option(metavar="CKPT", help="Checkpoint directory to write.")],
    adapter: Adapter = None,
    workers: Workers = 2,
) -> None:
    """Write a Hugging Face model as a Megatron torch_dist checkpoint, to load at any parallel layout."""
    from latxa_megatron.convert.hf import local_directory
    from latxa_megatron.convert.importer import import_hf

    directory = local_directory(hf)
    with bytes_bar("importing") as report:
        final = import_hf(directory, out, adapter=adapter, workers=workers, report=report)
    console.print(f"checkpoint: {final}", soft_wrap=True)


@convert.command("export")
def convert_export(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Hugging Face directory to write.")],
    like: Annotated[
        str | None,
        typer.Option(metavar="DIR_OR_ID", help="The same model on the Hugging Face side: its configuration and tokenizer."),
    ] = None,
    workers: Workers = 2,
) -> None:
    """Write a Megatron checkpoint as a Hugging Face directory that transformers and vLLM load."""
    from latxa_megatron.convert.exporter import export_hf
    from latxa_megatron.convert.hf import local_directory

    with bytes_bar("exporting") as report:
        source = export_hf(checkpoint, out, local_directory(like) if like else None, workers=workers, report=report)
    console.print(f"model: {out}, of {source}", soft_wrap=True)


@convert.command("verify")
def convert_verify(hf: Hf, checkpoint: Checkpoint, adapter: Adapter = None, workers: Workers = 2) -> None:
    """Prove that a checkpoint is a Hugging Face model: every bit of its weights, and what both compute, layer by layer.

    Exit status 2 with what differs first. Runs on the CPU, one layer in memory at a time.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks
    from latxa_megatron.convert.hf import local_directory
    from latxa_megatron.convert.verify import verify

    directory = local_directory(hf)
    with bytes_bar("comparing") as report:
        found = verify(directory, checkpoint, adapter=adapter, workers=workers, report=report)
    console.print(f"transformers and megatron-core on {found.tokens} tokens:", soft_wrap=True)
    table = Table("after", "largest difference", "relative")
    for name, difference in [*((f"layer {i}", each) for i, each in enumerate(found.layers)), ("logits", found.logits)]:
        table.add_row(name, f"{difference.largest:.1e}", f"{difference.relative:.1e}")
    console.print(table)
    console.print(f"the same: {found.tensors:,} tensors, {decimal(found.bytes)}, bit for bit", soft_wrap=True)
