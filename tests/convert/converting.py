"""A conversion that a process of its own does, to be killed by test_survival: in small pieces, so that it takes a while."""

from pathlib import Path

from latxa_megatron.convert import exporter, importer


def convert(kind: str, source: Path, out: Path) -> None:
    importer.PIECE_BYTES = exporter.PIECE_BYTES = 500
    if kind == "import":
        importer.import_hf(source, out)
    else:
        exporter.export_hf(source, out)
