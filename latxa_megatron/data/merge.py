"""`latxa data merge`: several stores of one tokenizer, template and mask become one, without a token being read.

The shards' files are hard-linked, or copied where that is not possible, and numbered through. Sources of one name become
one source; documents are never dropped, so a store, or a source file, that would come in twice is refused.
"""

import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from latxa_megatron.data.store import (
    FORMAT,
    MANIFEST,
    SKIPPED,
    VERSION,
    ShardInfo,
    TokenStore,
    existing_store,
    manifest_fingerprint,
)
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import new_directory, write_json


def merge(out: Path, directories: list[Path]) -> TokenStore:
    """Write the store of all documents of several stores, in their order; return it at once where `out` already is that.

    Costs one link (or copy) a file. Raises LatxaError where the stores do not belong together, one is damaged, or `out` holds
    something else.
    """
    stores = [TokenStore(directory) for directory in directories]
    inputs = _inputs(stores)
    if out.exists():
        return existing_store(out, inputs)
    with new_directory(out) as partial:
        shards = _take_shards(partial, stores)
        manifest = {"format": FORMAT, "version": VERSION, **inputs, "shards": [asdict(info) for info in shards]}
        if skipped := sum(store.manifest.get("skipped", 0) for store in stores):
            manifest["skipped"] = skipped
            lists = (store.directory / SKIPPED for store in stores if store.manifest.get("skipped"))
            (partial / SKIPPED).write_text("".join(each.read_text(encoding="utf-8") for each in lists), encoding="utf-8")
        manifest["fingerprint"] = manifest_fingerprint(manifest)
        write_json(partial / MANIFEST, manifest)
    return TokenStore(out)


def _inputs(stores: list[TokenStore]) -> dict[str, Any]:
    """All of the merged manifest but its shards."""
    if len(stores) < 2:
        raise LatxaError("name two stores or more to merge")
    for i, store in enumerate(stores):
        _check_like(stores[0], store)
        for other in stores[:i]:
            if other.fingerprint == store.fingerprint:
                raise LatxaError(f"{store.directory}: is the same store as {other.directory}; its documents would be there twice")
    sources = _sources(stores)
    return {
        "tokenizer": stores[0].manifest["tokenizer"],
        "mask": stores[0].manifest["mask"],
        "settings": {
            "order": list(dict.fromkeys(name for store in stores for name in _order(store))),
            "merged": [{"fingerprint": s.fingerprint, "settings": s.manifest["settings"]} for s in stores],
        },
        "sources": sources,
    }


def _order(store: TokenStore) -> list[str]:
    return list(store.manifest["settings"].get("order", store.manifest["sources"]))


def _check_like(first: TokenStore, store: TokenStore) -> None:
    """Raise LatxaError where the documents of two stores cannot stand in one."""
    a, b = first.manifest["tokenizer"], store.manifest["tokenizer"]
    both = f"{first.directory} and {store.directory}"
    if a["fingerprint"] != b["fingerprint"]:
        raise LatxaError(f"{both}: were built with different tokenizers; build one of them again")
    if a["template"] != b["template"]:
        raise LatxaError(f"{both}: were built with different chat templates; build one of them again")
    if a != b:
        differ = ", ".join(sorted(key for key in {*a, *b} if a.get(key) != b.get(key)))
        raise LatxaError(f"{both}: differ in the tokenizer's {differ}; build one of them again")
    if first.masked != store.masked:
        plain = store if first.masked else first
        raise LatxaError(
            f"{both}: only {plain.directory} trains every token and has no masks; `latxa data pack` takes the two side by side"
        )


def _sources(stores: list[TokenStore]) -> dict[str, Any]:
    """The sources of all stores; the files of those of one name, one after the other."""
    sources: dict[str, Any] = {}
    owner: dict[str, TokenStore] = {}
    for store in stores:
        for name, source in store.manifest["sources"].items():
            for file in source["files"]:
                if owner.setdefault(file["sha256"], store) is not store:
                    other = owner[file["sha256"]].directory
                    raise LatxaError(
                        f"{store.directory}: '{name}' has {file['path']}, whose content is in {other} too; its documents "
                        "would be there twice, so build one of them without it"
                    )
            if name not in sources:
                sources[name] = {**source, "files": list(source["files"])}
                continue
            known = sources[name]
            if {**known, "files": None} != {**source, "files": None}:
                differ = ", ".join(sorted(k for k in {*known, *source} - {"files"} if known.get(k) != source.get(k)))
                raise LatxaError(f"{store.directory}: its '{name}' has another {differ} than in a store before; build it again")
            known["files"] += source["files"]
    return sources


def _take_shards(out: Path, stores: list[TokenStore]) -> list[ShardInfo]:
    """Link the files of all shards into `out` under new numbers."""
    taken: list[ShardInfo] = []
    for store in stores:
        for info, _ in zip(store.shard_infos, store.shards, strict=True):  # opening them refuses what is cut short
            name = f"{len(taken):05d}"
            for suffix in info.sha256:
                _link(store.directory / f"{info.name}.{suffix}", out / f"{name}.{suffix}")
            taken.append(replace(info, name=name))
    return taken


def _link(old: Path, new: Path) -> None:
    try:
        os.link(old.resolve(), new)
    except OSError:  # another file system, or one without links
        shutil.copyfile(old, new)
