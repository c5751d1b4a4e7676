"""`latxa convert import`: a Hugging Face directory to a Megatron torch_dist checkpoint, without building a model.

The checkpoint keeps a copy of the configuration and tokenizer, and of which tensor stood in which file, under hf/: an export
needs nothing else.
"""

import math
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from latxa_megatron.convert.adapter import AdaptedTensors
from latxa_megatron.convert.hf import HfTensors, companions, weight_map
from latxa_megatron.convert.megatron_args import common
from latxa_megatron.convert.names import EMBEDDING, Row, Run, rows, runs, states
from latxa_megatron.convert.origin import ORIGIN, WEIGHT_MAP
from latxa_megatron.convert.source import check_source
from latxa_megatron.convert.threads import PIECE_BYTES, Report, in_threads
from latxa_megatron.convert.torch_dist_writer import Piece, Stored, TorchDistWriter
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import as_json, locked, new_directory, require_space, sha256, write_atomically
from latxa_megatron.model.llama import LlamaShape
from latxa_megatron.train import checkpoint, save

FILE_BYTES = 512 << 20
"""Of a file of the checkpoint: a thread writes one, and a model may be a single file of the source."""


class _Sourced(NamedTuple):
    """A piece, and where in the source it begins."""

    path: Path
    offset: int
    piece: Piece


def import_hf(
    hf: Path, out: Path, *, adapter: Path | None = None, workers: int = 2, report: Report = lambda done, total: None
) -> Path:
    """Write the weights of a Hugging Face directory as OUT/iter_0000000; return that directory.

    adapter: a directory of a LoRA of PEFT's, which is merged into the weights. workers: threads, each with a part of a file;
    the result does not depend on them. Does nothing where OUT holds the import of the same directory. Raises LatxaError for a
    model of no known family, a tensor that is missing or has another shape than config.json says, a disk that is too small, and
    where OUT holds something else, or lacks a file by now.
    """
    shape = LlamaShape.from_hf(hf)
    tensors = HfTensors(hf) if adapter is None else AdaptedTensors(hf, adapter)
    check_source(hf, shape, tensors)
    pieces = [piece for row in rows(shape) for piece in _pieces(shape, row, tensors)]
    final = checkpoint.iteration_directory(out, 0)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, "importing a model there"):
        if any(path != final for path in out.glob("iter_???????")):
            raise LatxaError(f"{out}: holds other checkpoints; name another directory")
        if final.exists():
            sums = {path.name: sha256(path) for path in tensors.files()}
            if checkpoint.read_facts(final).get("imported") != {**tensors.settings(), "files": sums}:
                raise LatxaError(f"{final}: holds another checkpoint; remove it or name another directory")
            checkpoint.resolve(out)  # is whole
        else:
            shutil.rmtree(out / ORIGIN, ignore_errors=True)
            require_space(out, sum(each.piece.bytes for each in pieces))
            save.write(final, partial(_write, shape, tensors, pieces, workers, report))
        _keep_origin(hf, out / ORIGIN)
        write_atomically(out / checkpoint.TRACKER, "0\n")
    return final


def _write(
    shape: LlamaShape, tensors: HfTensors, pieces: list[_Sourced], workers: int, report: Report, place: Path
) -> save.Written:
    """Fill a directory with files, each of tensors, or parts of them, that stand one after the other in a file of the source.

    So all is read and written in its order, and a file of the source is hashed beside, from the same reading.
    """
    writer = TorchDistWriter(place)
    hashing: dict[Path, Future[str]] = {}
    groups = _groups(pieces)

    def convert(number: int, tell: Callable[[int], None]) -> None:
        path = groups[number][0].path
        if number == 0 or groups[number - 1][0].path != path:
            hashing[path] = beside.submit(sha256, path)
        writer.write_file(number, [each.piece for each in groups[number]], tell)

    with ThreadPoolExecutor(workers) as beside:
        in_threads(workers, convert, range(len(groups)), sum(each.piece.bytes for each in pieces), report)
        sums = {path.name: hashing[path].result() if path in hashing else sha256(path) for path in tensors.files()}
    writer.write_empty(len(groups), states(shape))
    dtype = tensors.place(EMBEDDING.hf[0]).dtype
    return save.Written(writer.finish(common(shape, dtype)), {"step": 0, "imported": {**tensors.settings(), "files": sums}})


def _groups(pieces: list[_Sourced]) -> list[list[_Sourced]]:
    """The pieces in the order of the source; those of a file of it in groups of about one size, of some FILE_BYTES at most."""
    groups = []
    for path in sorted({each.path for each in pieces}):
        own = sorted((each for each in pieces if each.path == path), key=lambda each: each.offset)
        total, done = sum(each.piece.bytes for each in own), 0
        found: list[list[_Sourced]] = [[] for _ in range(-(-total // FILE_BYTES))]
        for each in own:
            found[done * len(found) // total].append(each)
            done += each.piece.bytes
        groups += [group for group in found if group]
    return groups


def _pieces(shape: LlamaShape, row: Row, tensors: HfTensors) -> Iterator[_Sourced]:
    """A tensor of the checkpoint, layer by layer."""
    layers = range(shape.layers) if row.in_layers else [0]
    names = [[name.format(layer) for name in row.hf] for layer in layers]
    dtype = tensors.place(names[0][0]).dtype
    whole = runs(shape, row)
    width = shape.tensor_shape(row.hf[0])[1:]
    sizes = (sum(run.rows for run in whole), *width)
    stored = Stored(row.mcore, (shape.layers, *sizes) if row.in_layers else sizes, dtype)
    most = max(1, PIECE_BYTES // (math.prod(width) * dtype.itemsize))
    for layer, parts in enumerate(names):
        first = 0
        for some in _cut(whole, most):
            count = sum(run.rows for run in some)
            at, size = (first, *[0] * len(width)), (count, *width)
            read = partial(_read, tensors, parts, some, size, dtype, stacked=row.in_layers)
            piece = Piece(stored, (layer, *at), (1, *size), read) if row.in_layers else Piece(stored, at, size, read)
            place = tensors.place(parts[some[0].part])
            yield _Sourced(place.path, place.offset + some[0].start * math.prod(width) * dtype.itemsize, piece)
            first += count


def _cut(whole: list[Run], most: int) -> Iterator[list[Run]]:
    """Runs in groups of at most so many rows."""
    group: list[Run] = []
    held = 0
    for run in whole:
        start, left = run.start, run.rows
        while left:
            count = min(left, most - held)
            group.append(Run(run.part, start, count))
            start, left, held = start + count, left - count, held + count
            if held == most:
                yield group
                group, held = [], 0
    if group:
        yield group


def _read(
    tensors: HfTensors, names: list[str], some: list[Run], size: tuple[int, ...], dtype: torch.dtype, *, stacked: bool
) -> Tensor:
    found = torch.empty(size, dtype=dtype)
    first = 0
    for run in some:
        tensors.read_into(found[first : first + run.rows], names[run.part], run.start)
        first += run.rows
    return found[None] if stacked else found


def _keep_origin(hf: Path, origin: Path) -> None:
    """Make `origin` a copy of the files that go with the weights, and of no others."""
    wanted = {name: (hf / name).read_bytes() for name in companions(hf)}
    wanted[WEIGHT_MAP] = as_json(weight_map(hf)).encode()
    there = [path for path in origin.rglob("*") if path.is_file()]
    if {str(path.relative_to(origin)): path.read_bytes() for path in there} == wanted:
        return
    shutil.rmtree(origin, ignore_errors=True)
    with new_directory(origin) as partial:
        for name, content in wanted.items():
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_bytes(content)
