"""What is in a token store or a pack plan: facts to print, and samples to look at."""

from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from latxa_megatron.data import exported, reading, samples
from latxa_megatron.data.documents import Part, Place, by_source, longest
from latxa_megatron.data.lengths import Lengths, count
from latxa_megatron.data.plan import MANIFEST, PackPlan
from latxa_megatron.data.reading import Reading, Strange
from latxa_megatron.data.samples import Sample
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
    pieces: int  # documents, and parts of documents, in all samples
    continued: int  # those of them that do not have their document's beginning
    exposure: dict[str, Exposure]  # by source


@dataclass(frozen=True)
class Long:
    """One of the longest documents; text: its beginning, None where no tokenizer was given."""

    place: Place
    tokens: int
    text: str | None


@dataclass(frozen=True)
class Inspection:
    """plan is None for a store; readings, strange and samples are empty where no tokenizer was given."""

    path: Path
    fingerprint: str
    masked: bool
    sources: dict[str, Totals]
    lengths: dict[str, Lengths]  # by source, as the readings are
    plan: PlanFacts | None
    longest: list[Long]
    readings: dict[str, Reading]
    strange: dict[str, list[Strange]]
    samples: list[Sample]


LISTED = 6
"""Documents in each list of the longest and strangest."""

_TOKENS = 2000
"""Of a document in a terminal; of a longer one its beginning and end are shown."""


def inspect(path: Path, tokenizer_directory: Path | None = None, sample: int = 0, *, page: bool = False) -> Inspection:
    """Facts about the store or plan at `path`, with document (or sample) number `sample` decoded.

    page: more samples than this one, each shortened. Costs O(documents + slices), and the reading of a fixed sample of texts.
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
    tokenizer = _tokenizer(path, stores[0], tokenizer_directory) if tokenizer_directory else None
    sources = _sources(stores)
    known = len(plan) if plan else sum(totals.documents for totals in sources.values())
    if not 0 <= sample < known:
        raise LatxaError(f"{path}: has no sample {sample}; there are {known}, from 0 on")
    parts = by_source(stores)
    texts = {name: reading.texts(tokenizer, name, of_source) for name, of_source in parts.items()} if tokenizer else {}
    return Inspection(
        path=path,
        fingerprint=plan.fingerprint if plan else stores[0].fingerprint,
        masked=any(store.masked for store in stores),
        sources=sources,
        lengths={name: count(part.shard.lengths for part in of_source) for name, of_source in parts.items() if of_source},
        plan=_plan_facts(plan) if plan else None,
        longest=_longest(parts, tokenizer),
        readings={name: reading.together(found) for name, found in texts.items()},
        strange=reading.strangest([text for found in texts.values() for text in found], LISTED) if texts else {},
        samples=_samples(plan or stores[0], tokenizer, sample, known, page) if tokenizer else [],
    )


def _tokenizer(path: Path, store: TokenStore, directory: Path) -> Tokenizer:
    tokenizer = Tokenizer(directory)
    if tokenizer.fingerprint != store.manifest["tokenizer"]["fingerprint"]:
        raise LatxaError(f"{directory}: is not the tokenizer that {path} was built with")
    return tokenizer


def _longest(parts: dict[str, list[Part]], tokenizer: Tokenizer | None) -> list[Long]:
    """The longest documents of all sources."""
    found = [document for name, of_source in parts.items() for document in longest(name, of_source, LISTED)]
    first = sorted(found, key=lambda document: -len(document.tokens))[:LISTED]
    texts = (reading.plain(tokenizer, tokenizer.decode(d.tokens[:200].tolist())) if tokenizer else None for d in first)
    return [Long(d.place, len(d.tokens), text) for d, text in zip(first, texts, strict=True)]


def _samples(of: PackPlan | TokenStore, tokenizer: Tokenizer, number: int, known: int, page: bool) -> list[Sample]:
    """Sample `number`; for a page also the two of most documents of the hundred after it, or, of a store, two of each source."""
    if isinstance(of, PackPlan):
        next_ones = range(number + 1, min(number + 101, known)) if page else []
        numbers = [number, *sorted(sorted(next_ones, key=lambda n: -len(of.slices_of(n)))[:2])]
        return [samples.of_plan(of, n, tokenizer, 400 if page else _TOKENS) for n in numbers]
    shown = [samples.of_store(of, number, tokenizer, 800 if page else _TOKENS)]
    others = samples.drawn_of_store(of, 2, tokenizer, 800) if page else []
    return shown + [each for each in others if each.number != number]


def _plan_facts(plan: PackPlan) -> PlanFacts:
    passes, packing = len(plan.manifest["passes"]), plan.manifest["packing"]
    return PlanFacts(len(plan), plan.seq_length, passes, packing, plan.efficiency(), *plan.pieces(), exposure(plan))


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
