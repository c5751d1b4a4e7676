"""Cleans small sources, and reads what came of it."""

import io
import json
from pathlib import Path

import zstandard

from latxa_megatron.data.cleaning.clean import clean
from latxa_megatron.data.cleaning.rules import Rules
from latxa_megatron.data.sources import Source, find


def source(directory: Path, name: str, texts, *, prefix="") -> Source:
    """A source of one file with a document for each text."""
    path = directory / f"{name}{prefix}.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return find(name, [str(path)])


def kept_lines(out: Path, name: str) -> list[bytes]:
    """Kept lines of a source, read with zstandard's own reader."""
    lines = []
    for path in sorted(out.glob(f"{name}-*.jsonl.zst")):
        with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as stream:
            lines += io.BufferedReader(stream).readlines()
    return lines


def dropped(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "dropped.jsonl").read_text(encoding="utf-8").splitlines()]


def dropped_lines(out: Path, rule: str) -> list[int]:
    return [each["line"] for each in dropped(out) if each["rule"] == rule]


ONLY_AGAINST = {"exact": False, "near": None}

__all__ = ["ONLY_AGAINST", "Rules", "clean", "dropped", "dropped_lines", "kept_lines", "source"]
