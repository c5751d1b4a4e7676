"""Token stores, read: a directory of Megatron .bin/.idx shards, .mask files beside them, and a manifest. See docs/formats.md."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from latxa_megatron import _core
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import fingerprint, read_json

FORMAT = "latxa-token-store"
VERSION = 1
MANIFEST = "manifest.json"
SKIPPED = "skipped.txt"


@dataclass(frozen=True)
class ShardInfo:
    """One shard, as the manifest has it. sha256 is by file suffix: bin, idx and, where documents are masked, mask."""

    name: str
    source: str
    documents: int
    tokens: int
    trained_tokens: int
    sha256: dict[str, str]


@dataclass(frozen=True)
class Totals:
    documents: int
    tokens: int
    trained_tokens: int


class TokenStore:
    """A finished store. Raises LatxaError for a directory that is none, or whose manifest was changed by hand."""

    def __init__(self, directory: Path) -> None:
        if not (directory / MANIFEST).is_file():
            raise LatxaError(f"{directory}: is not a token store (it has no {MANIFEST}); `latxa data build` makes one")
        self.directory = directory
        self.manifest: dict[str, Any] = read_json(directory / MANIFEST)
        if self.manifest.get("format") != FORMAT or self.manifest.get("version") != VERSION:
            raise LatxaError(f"{directory / MANIFEST}: is not a token store of version {VERSION}; build the store again")
        if self.manifest.get("fingerprint") != manifest_fingerprint(self.manifest):
            raise LatxaError(f"{directory / MANIFEST}: was changed since it was written; build the store again")
        self.shard_infos = [ShardInfo(**shard) for shard in self.manifest["shards"]]

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    @property
    def masked(self) -> bool:
        """Whether documents have spans; a store of plain text trains every token."""
        return bool(self.manifest["mask"] == "spans")

    @cached_property
    def shards(self) -> list[_core.Shard]:
        """The shards, memory mapped, in the manifest's order. Raises LatxaError for a damaged file."""
        try:
            return [_core.Shard(str(self.directory / info.name), self.masked) for info in self.shard_infos]
        except _core.StoreError as error:
            raise LatxaError(f"{error}; build the store again") from None

    def totals(self) -> dict[str, Totals]:
        """Documents, tokens and trained tokens of each source."""
        return {
            source: Totals(
                *(
                    sum(getattr(info, field) for info in self.shard_infos if info.source == source)
                    for field in ("documents", "tokens", "trained_tokens")
                )
            )
            for source in self.manifest["sources"]
        }

    def documents(self) -> Iterator[tuple[str, list[int], list[tuple[int, int]]]]:
        """(source, token ids, trained spans) of every document, in the store's order."""
        for info, shard in zip(self.shard_infos, self.shards, strict=True):
            for i in range(len(shard)):
                yield info.source, shard.tokens(i).tolist(), [(int(a), int(b)) for a, b in shard.spans(i)]


def existing_store(out: Path, inputs: dict[str, Any]) -> TokenStore:
    """The finished store at `out`. Raises LatxaError where it is none, or its manifest says otherwise of any of `inputs`."""
    if not (out / MANIFEST).is_file():
        raise LatxaError(f"{out}: exists and is no token store; remove it or name another directory")
    store = TokenStore(out)
    if {key: store.manifest.get(key) for key in inputs} != inputs:
        raise LatxaError(f"{out}: holds a store of other inputs; remove it or name another directory")
    return store


def manifest_fingerprint(manifest: dict[str, Any]) -> str:
    """SHA-256 over all of a manifest but the fingerprint itself."""
    return fingerprint({key: value for key, value in manifest.items() if key != "fingerprint"})
