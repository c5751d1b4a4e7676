"""What is in a token store or a pack plan: facts to print, and samples to look at."""

from collections import Counter
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path

import numpy as np

from latxa_megatron.data import exported
from latxa_megatron.data.dataset import PackedDataset
from latxa_megatron.data.plan import MANIFEST, PackPlan
from latxa_megatron.data.store import TokenStore, Totals
from latxa_megatron.data.tokenizer import Tokenizer
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import read_json


@dataclass(frozen=True)
class Exposure:
    """How much of a source a plan shows. epochs: how often a document is seen in the mean; share: of all tokens that are seen.

    times: how many documents are seen so often. Those of one token are seen 0 times, and count in none but times[0].
    """

    epochs: float
    share: float
    times: dict[int, int]


@dataclass(frozen=True)
class PlanFacts:
    samples: int
    seq_length: int
    passes: int
    packing: str
    efficiency: float
    exposure: dict[str, Exposure]  # by source


@dataclass(frozen=True)
class Piece:
    """A run of tokens, decoded, that are all trained or all not, inside one document of a sample."""

    text: str
    trained: bool
    document: int


@dataclass(frozen=True)
class Inspection:
    """plan is None for a store; sample is empty where no tokenizer was given."""

    sources: dict[str, Totals]
    plan: PlanFacts | None
    sample: list[Piece]


def inspect(path: Path, tokenizer_directory: Path | None = None, sample: int = 0) -> Inspection:
    """Facts about the store or plan at `path`, with document (or sample) number `sample` decoded.

    Raises LatxaError for a path that is neither, a sample past the end, or another tokenizer than the one it was built with.
    """
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise LatxaError(f"{path}: is neither a token store nor a pack plan (it has no {MANIFEST})")
    kind = read_json(manifest).get("format")
    if kind == exported.FORMAT:
        raise LatxaError(f"{path}: is an export; inspect the plan that it was made from, or check it with `latxa data verify`")
    plan = PackPlan(path) if kind == "latxa-pack-plan" else None
    stores = plan.stores if plan else [TokenStore(path)]
    sources = _sources(stores)
    facts = _plan_facts(plan) if plan else None
    pieces: list[Piece] = []
    if tokenizer_directory:
        tokenizer = Tokenizer(tokenizer_directory)
        if tokenizer.fingerprint != stores[0].manifest["tokenizer"]["fingerprint"]:
            raise LatxaError(f"{tokenizer_directory}: is not the tokenizer that {path} was built with")
        count = len(plan) if plan else sum(totals.documents for totals in sources.values())
        if not 0 <= sample < count:
            raise LatxaError(f"{path}: has no sample {sample}; there are {count}, from 0 on")
        tokens = _plan_sample(path, sample) if plan else _store_sample(stores[0], sample)
        pieces = _pieces(tokenizer, tokens)
    return Inspection(sources, facts, pieces)


def _plan_facts(plan: PackPlan) -> PlanFacts:
    passes, packing = len(plan.manifest["passes"]), plan.manifest["packing"]
    return PlanFacts(len(plan), plan.seq_length, passes, packing, plan.efficiency(), exposure(plan))


def exposure(plan: PackPlan) -> dict[str, Exposure]:
    """How much of each source a plan shows, counted from its slices; sources of one name in several stores are one."""
    times: dict[str, Counter[int]] = {}
    tokens: Counter[str] = Counter()
    visible: Counter[str] = Counter()
    for store, seen_of_store in zip(plan.stores, plan.times_seen(), strict=True):
        for info, shard, seen in zip(store.shard_infos, store.shards, seen_of_store, strict=True):
            of_source = times.setdefault(info.source, Counter())
            of_source.update({n: int(count) for n, count in enumerate(np.bincount(seen)) if count})
            lengths = shard.lengths
            tokens[info.source] += int(lengths.astype(np.int64) @ seen.astype(np.int64))
            visible[info.source] += int((lengths >= 2).sum())
    return {
        source: Exposure(
            sum(n * count for n, count in of_source.items()) / max(visible[source], 1),
            tokens[source] / tokens.total(),
            dict(sorted(of_source.items())),
        )
        for source, of_source in times.items()
    }


def _sources(stores: list[TokenStore]) -> dict[str, Totals]:
    """Totals by source; two stores may have sources of one name."""
    sources: dict[str, Totals] = {}
    for store in stores:
        for name, new in store.totals().items():
            old = sources.get(name, Totals(0, 0, 0))
            sources[name] = Totals(*(getattr(old, f.name) + getattr(new, f.name) for f in fields(Totals)))
    return sources


_Token = tuple[int, bool, int]  # id, trained, number of its document


def _store_sample(store: TokenStore, number: int) -> list[_Token]:
    for shard in store.shards:
        if number < len(shard):
            trained = {t for start, end in shard.spans(number).tolist() for t in range(start, end)}
            return [(t, i in trained, 0) for i, t in enumerate(shard.tokens(number).tolist())]
        number -= len(shard)
    return []


def _plan_sample(path: Path, number: int) -> list[_Token]:
    """The labels of a sample: what the model is asked to predict; each document's first token is never asked."""
    dataset = PackedDataset(path)
    batch = dataset.batch([number])
    documents = len(dataset.document_positions(number, number + 1))  # padding is none of them
    borders = batch.cu_seqlens.tolist()[: documents + 1]
    tokens = []
    for document, (start, end) in enumerate(pairwise(borders)):
        ids = [int(batch.tokens[0, start]), *batch.labels[0, start:end].tolist()]
        trained = [False, *batch.loss_mask[0, start:end].bool().tolist()]
        tokens += [(t, m, document) for t, m in zip(ids, trained, strict=True)]
    return tokens


def _pieces(tokenizer: Tokenizer, tokens: list[_Token]) -> list[Piece]:
    pieces: list[Piece] = []
    start = 0
    for i in range(1, len(tokens) + 1):
        if i == len(tokens) or tokens[i][1:] != tokens[start][1:]:
            _, trained, document = tokens[start]
            pieces.append(Piece(tokenizer.decode([t for t, _, _ in tokens[start:i]]), trained, document))
            start = i
    return pieces
