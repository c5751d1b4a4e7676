"""`latxa data verify`: every file of a store, plan or export against its manifest, and the files against each other.

Each file is hashed as it streams by, in blocks, and a shard's token ids are compared with the vocabulary on the way. The reader
that training uses checks sizes, offsets and spans. Shards are read in threads, since hashing lets go of the interpreter; a thread
holds one block and the lengths of one shard's documents.
"""

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from latxa_megatron import _core
from latxa_megatron.data import exported
from latxa_megatron.data import plan as plans
from latxa_megatron.data import store as stores
from latxa_megatron.data.exported import Export
from latxa_megatron.data.plan import PackPlan
from latxa_megatron.data.store import MANIFEST, SKIPPED, ShardInfo, TokenStore
from latxa_megatron.data.verify_export import file_list_faults, side_files, unreadable
from latxa_megatron.data.verify_plan import pass_faults, row_faults
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import as_json, read_json

_BLOCK = 1 << 20
"""Bytes hashed at once; a multiple of every token's width."""

_MALFORMED = (AttributeError, IndexError, KeyError, TypeError, ValueError)
"""What a manifest raises whose fingerprint is right and whose values are of another form."""

Progress = Callable[[int, int], None]
"""Called with (bytes read, bytes in all) of the files."""


@dataclass(frozen=True)
class Fault:
    file: Path
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


@dataclass
class Report:
    """What was read, and all that is wrong with it."""

    files: int = 0
    bytes: int = 0
    faults: list[Fault] = field(default_factory=list)

    def add(self, other: "Report") -> None:
        self.files += other.files
        self.bytes += other.bytes
        self.faults += other.faults


def verify(path: Path, *, with_stores: bool = False, workers: int = 1, progress: Progress = lambda done, total: None) -> Report:
    """Check the store, plan or export at `path`; with_stores also checks all of the stores that a plan was packed from.

    Reads every byte once, and the indexes and masks a second time. Raises LatxaError for a path that is none of them.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise LatxaError(f"{path}: is neither a token store nor a pack plan nor an export (it has no {MANIFEST})")
    try:
        manifest = read_json(file)
    except LatxaError as error:
        return Report(1, file.stat().st_size, [_fault(file, error)])
    kind = manifest.get("format") if isinstance(manifest, dict) else None
    if kind not in (stores.FORMAT, plans.FORMAT, exported.FORMAT):
        raise LatxaError(f"{path}: is neither a token store nor a pack plan nor an export (its {MANIFEST} says format {kind!r})")
    report = Report(1, file.stat().st_size)
    if file.read_bytes() != as_json(manifest).encode():
        report.faults.append(Fault(file, "has other bytes than were written"))
    try:
        if kind == stores.FORMAT:
            report.add(_verify_store(path, workers, progress))
        elif kind == exported.FORMAT:
            report.add(_verify_export(path, workers, progress))
        else:
            report.add(_verify_plan(path, manifest, with_stores, workers, progress))
    except LatxaError as error:
        report.faults.append(_fault(file, error))
    except _MALFORMED as error:
        report.faults.append(Fault(file, f"lacks a value, or has one of another form ({error!r})"))
    return report


def _fault(file: Path, error: Exception) -> Fault:
    """A fault from an error whose sentence may begin with the file."""
    return Fault(file, str(error).removeprefix(f"{file}: "))


def _verify_store(path: Path, workers: int, progress: Progress) -> Report:
    store = TokenStore(path)
    suffixes = ("bin", "idx", "mask") if store.masked else ("bin", "idx")
    report = Report(faults=_shard_list_faults(store, suffixes))
    expected = {f"{info.name}.{suffix}" for info in store.shard_infos for suffix in suffixes}
    report.faults += _extra(path, {*expected, SKIPPED} if store.manifest.get("skipped") else expected)
    report.faults += _skipped_faults(store)
    total = sum((path / name).stat().st_size for name in expected if (path / name).is_file())
    vocabulary = int(store.manifest["tokenizer"]["vocab_size"])
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(lambda info: _verify_shard(path, info, suffixes, vocabulary), store.shard_infos)
        for shard in found:
            report.add(shard)
            progress(report.bytes, total)
    return report


def _shard_list_faults(store: TokenStore, suffixes: tuple[str, ...]) -> list[Fault]:
    file = store.directory / MANIFEST
    names = [info.name for info in store.shard_infos]
    faults = [Fault(file, f"names shard {name} twice") for name in sorted({n for n in names if names.count(n) > 1})]
    for info in store.shard_infos:
        if info.source not in store.manifest["sources"]:
            faults.append(Fault(file, f"shard {info.name} is of '{info.source}', which is none of its sources"))
        if set(info.sha256) != set(suffixes):
            faults.append(Fault(file, f"shard {info.name} has hashes of {sorted(info.sha256)}, not of {sorted(suffixes)}"))
    return faults


def _skipped_faults(store: TokenStore) -> list[Fault]:
    file, said = store.directory / SKIPPED, int(store.manifest.get("skipped", 0))
    there = file.read_bytes().count(b"\n") if said and file.is_file() else 0
    return [Fault(file, f"has {there} lines, and {said} were skipped")] if there != said else []


def _extra(directory: Path, expected: Iterable[str]) -> list[Fault]:
    known = {MANIFEST, *expected}
    return [Fault(p, "is not in the manifest") for p in sorted(directory.iterdir()) if p.name not in known]


def _verify_shard(directory: Path, info: ShardInfo, suffixes: tuple[str, ...], vocabulary: int) -> Report:
    report = Report()
    files = {suffix: directory / f"{info.name}.{suffix}" for suffix in suffixes}
    shard = None
    if all(file.is_file() for file in files.values()):
        try:
            shard = _core.Shard(str(directory / info.name), "mask" in suffixes)
        except _core.StoreError as error:
            where = next((file for file in files.values() if str(error).startswith(f"{file}: ")), files["idx"])
            report.faults.append(_fault(where, error))
    ids = _Ids(_token_type(files["idx"]), vocabulary) if shard else None
    for suffix, file in files.items():
        report.add(_verify_hash(file, info.sha256.get(suffix), ids.look if ids and suffix == "bin" else lambda block: None))
    if ids and ids.strange:
        what = f"{ids.strange} token ids are not below the vocabulary's {vocabulary}, the first that of token {ids.first_strange}"
        report.faults.append(Fault(files["bin"], what))
    if shard:
        report.faults += _index_faults(files["idx"], shard, info)
    return report


def _verify_hash(file: Path, expected: str | None, look: Callable[[bytes], None] = lambda block: None) -> Report:
    """Hash a file; `look` sees each of its blocks."""
    if not file.is_file():
        return Report(faults=[Fault(file, "is missing")])
    digest, size = hashlib.sha256(), 0
    with file.open("rb") as blocks:
        while block := blocks.read(_BLOCK):
            digest.update(block)
            look(block)
            size += len(block)
    same = digest.hexdigest() == expected
    return Report(1, size, [] if same else [Fault(file, "is not the file that was written: its SHA-256 is not the manifest's")])


def _token_type(index: Path) -> Any:
    """The unsigned type of a shard's tokens: a negative id is then the largest of all."""
    with index.open("rb") as file:
        return np.dtype("<u2" if file.read(18)[17] == 8 else "<u4")


class _Ids:
    """Counts the token ids, in blocks that come one after the other, that a vocabulary does not have."""

    def __init__(self, dtype: Any, vocabulary: int) -> None:
        self._dtype, self._vocabulary = dtype, vocabulary
        self._seen = 0
        self.strange = 0
        self.first_strange = -1

    def look(self, block: bytes) -> None:
        ids = np.frombuffer(block, self._dtype)
        if int(ids.max()) >= self._vocabulary:
            strange = np.flatnonzero(ids >= self._vocabulary)
            if not self.strange:
                self.first_strange = self._seen + int(strange[0])
            self.strange += len(strange)
        self._seen += len(ids)


def _index_faults(file: Path, shard: _core.Shard, info: ShardInfo) -> list[Fault]:
    """What the reader does not need and others do: Megatron's document table, the file's end, the manifest's counts."""
    faults = []
    documents = len(shard)
    if file.stat().st_size != 42 + 20 * documents:
        faults.append(Fault(file, f"has {file.stat().st_size} bytes, its {documents} documents need {42 + 20 * documents}"))
    table = np.memmap(file, "<i8", "r", offset=34 + 12 * documents, shape=(documents + 1,))
    for first in range(0, documents + 1, _BLOCK):
        wrong = np.flatnonzero(table[first : first + _BLOCK] != np.arange(first, min(first + _BLOCK, documents + 1)))
        if len(wrong):
            faults.append(Fault(file, f"entry {first + int(wrong[0])} of its document table is wrong"))
            break
    found = {"documents": documents, "tokens": int(shard.lengths.sum(dtype=np.int64)), "trained_tokens": shard.trained_tokens}
    for name, count in found.items():
        if count != getattr(info, name):
            what = f"the shard has {count} {name.replace('_', ' ')}, the manifest says {getattr(info, name)}"
            faults.append(Fault(file.with_suffix(".mask") if name == "trained_tokens" and len(info.sha256) == 3 else file, what))
    return faults


def _verify_plan(path: Path, manifest: dict[str, Any], with_stores: bool, workers: int, progress: Progress) -> Report:
    report = Report()
    for name in ("rows.bin", "slices.bin"):
        report.add(_verify_hash(path / name, manifest["sha256"][name]))
    report.faults += _extra(path, ("rows.bin", "slices.bin"))
    packed: list[TokenStore] = []
    for directory, entry in zip(map(Path, manifest["store_paths"]), manifest["stores"], strict=True):
        try:
            packed.append(TokenStore(directory))
            if packed[-1].fingerprint != entry["fingerprint"]:
                report.faults.append(Fault(directory, f"is not the store that {path} was packed from"))
        except LatxaError as error:
            report.faults.append(_fault(directory, error))
    stores_found = len(packed) == len(manifest["stores"]) and not report.faults
    try:
        plan = PackPlan(path, check_stores=False)
        report.faults += [Fault(path / MANIFEST, what) for what in pass_faults(plan)]
        report.faults += [Fault(path / name, what) for name, what in row_faults(plan, packed if stores_found else None)]
    except LatxaError as error:
        report.faults.append(_fault(path / MANIFEST, error))
    if with_stores:
        for store in packed:
            report.add(verify(store.directory, workers=workers, progress=progress))
    return report


def _verify_export(path: Path, workers: int, progress: Progress) -> Report:
    export = Export(path)
    suffixes = exported.SUFFIXES[export.layout]
    report = Report(faults=[Fault(path / MANIFEST, what) for what in file_list_faults(export)])
    names = [f"{entry['name']}.{suffix}" for entry in export.manifest["files"] for suffix in suffixes]
    beside = side_files(export)
    report.faults += _extra(path, {*names, *beside})
    for name, content in beside.items():
        report.add(_verify_hash(path / name, hashlib.sha256(content).hexdigest()))
    total = sum((path / name).stat().st_size for name in names if (path / name).is_file())

    def check(entry: dict[str, Any]) -> Report:
        files = {suffix: path / f"{entry['name']}.{suffix}" for suffix in suffixes}
        found = Report()
        for suffix, file in files.items():
            found.add(_verify_hash(file, entry["sha256"].get(suffix)))
        if export.layout == "records" and all(file.is_file() for file in files.values()):
            found.faults += [Fault(path / name, what) for name, what in unreadable(export, entry)]
        return found

    with ThreadPoolExecutor(workers) as pool:
        for found in pool.map(check, export.manifest["files"]):
            report.add(found)
            progress(report.bytes, total)
    return report
