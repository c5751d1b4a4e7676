"""`latxa demo`: each stop of the road once, through the functions that the other commands call.

Every stop leaves its result under `out`, whole or not at all, and is passed over where that is there: a demo that was killed
goes on with the same command.
"""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from latxa_megatron import recipes
from latxa_megatron.config import RunConfig, load_run
from latxa_megatron.demo.backbone import write_backbone
from latxa_megatron.demo.memory import PeakMemory
from latxa_megatron.demo.report import Score, write_report
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import fingerprint, read_json, sha256, write_atomically, write_json
from latxa_megatron.model import device
from latxa_megatron.model.llama import LlamaShape

RECIPE = "demo"

PROMPTS = (
    "Euskal Herriko mendietan",
    "Goizean esnatu eta gero,",
    "Liburutegia leku ona da",
)


@dataclass(frozen=True)
class Data:
    """The sample files, or the user's own corpus in place of the first."""

    corpus: list[Path]
    conversations_eu: Path
    conversations_en: Path
    heldout_en: Path


def walk(out: Path, *, backbone: Path | None = None, corpus: list[Path] | None = None, console: Console | None = None) -> None:
    """Adapt a model to Basque on this machine and write OUT/report.json and OUT/report.html.

    Raises LatxaError for bad input, or where `out` was begun with other input.
    """
    console = console or Console()
    began = time.time()
    if backbone:
        LlamaShape.from_hf(backbone)  # refuse what is no Llama before anything is written
    out = out.resolve()
    data = _data(corpus)
    _begin(out, backbone, data)
    with PeakMemory() as memory:
        hf = _backbone(out, backbone, console)
        run_file, run = _run_file(out, hf, data)
        _build(run, console)
        _import(run, console)
        before = _measure(out / "before.json", hf, run, data, console, "before training")
        _train(run_file, run, console)
        exported = _export(out, run, console)
        after = _measure(out / "after.json", exported, run, data, console, "after training")
    spent = time.time() - began
    report = write_report(out, run, before, after, list(PROMPTS), seconds=spent, peak_rss_gb=memory.peak_gb)
    change = {language: after.bpb[language] / before.bpb[language] - 1 for language in ("eu", "en")}
    console.print(
        f"[bold]Basque {before.bpb['eu']:.2f} -> {after.bpb['eu']:.2f} bits per byte ({change['eu']:+.0%}), "
        f"English {before.bpb['en']:.2f} -> {after.bpb['en']:.2f} ({change['en']:+.0%})[/bold], "
        f"in {spent / 60:.1f} minutes and {memory.peak_gb:.1f} GB"
    )
    console.print(f"report: {report}", soft_wrap=True)


def _data(corpus: list[Path] | None) -> Data:
    for path in corpus or []:
        if not path.is_file():
            raise LatxaError(f"--corpus {path}: there is no such file")
    shipped = Path(__file__).parent / "data"
    if not shipped.is_dir():  # an editable install: the repository's own
        shipped = Path(__file__).parents[2] / "examples" / "demo" / "data"
    files = [shipped / f"{name}.jsonl" for name in ("corpus_eu", "conversations_eu", "conversations_en", "heldout_en")]
    return Data([path.resolve() for path in corpus] if corpus else [files[0]], *files[1:])


def _begin(out: Path, backbone: Path | None, data: Data) -> None:
    """Remember what this demo is made from; refuse to mix two."""
    out.mkdir(parents=True, exist_ok=True)
    inputs = fingerprint(
        [
            str(backbone.resolve()) if backbone else "",
            recipes.path(RECIPE).read_text(),
            *(sha256(path) for path in (*data.corpus, data.conversations_eu, data.conversations_en, data.heldout_en)),
        ]
    )
    note = out / "inputs"
    if note.exists() and note.read_text() != inputs:
        raise LatxaError(f"{out}: holds a demo of other input; remove it or name another directory with --out")
    write_atomically(note, inputs)


def _backbone(out: Path, given: Path | None, console: Console) -> Path:
    if given:
        console.print(f"[bold]backbone[/bold]  {given}")
        return given.resolve()
    with console.status("unpacking SmolLM2-135M-Instruct"):
        write_backbone(out / "backbone")
    console.print("[bold]backbone[/bold]  SmolLM2-135M-Instruct as a Hugging Face directory")
    return out / "backbone"


def _run_file(out: Path, hf: Path, data: Data) -> tuple[Path, RunConfig]:
    """The demo's run file: the recipe, with this machine's paths."""
    path = out / "run.yaml"
    run = {
        "base": RECIPE,
        "out": str(out / "run"),
        "model": {"hf": str(hf), "checkpoint": str(out / "imported")},
        "parallel": _parallel(LlamaShape.from_hf(hf)),
        "data": {
            "store": str(out / "store"),
            "plan": str(out / "plan"),
            "sources": {
                "corpus_eu": {"paths": [str(path) for path in data.corpus]},
                "conversations_eu": {"paths": [str(data.conversations_eu)]},
                "conversations_en": {"paths": [str(data.conversations_en)]},
            },
        },
    }
    write_atomically(path, yaml.safe_dump(run, sort_keys=False, allow_unicode=True))
    return path, load_run(path)


def _parallel(shape: LlamaShape) -> dict[str, Any]:
    """Two pipeline stages of about equal work, the output head being worth several layers of a small model; one on one GPU."""
    if (device.on_gpu() and torch.cuda.device_count() == 1) or shape.layers < 2:
        return {"pp": 1}
    layer = shape.hidden * (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim + 3 * shape.hidden * shape.ffn
    head = shape.hidden * shape.vocab / layer
    first = max(1, min(shape.layers - 1, round((shape.layers + head) / 2)))
    return {"pp": 2, "stages": [first, shape.layers - first]}


def _build(run: RunConfig, console: Console) -> None:
    from latxa_megatron.data.build import build_store
    from latxa_megatron.data.mixture import mixture_of
    from latxa_megatron.data.packing import pack
    from latxa_megatron.data.sources import find

    sources = [find(name, s.paths, s.hold_out, s.field) for name, s in run.data.sources.items()]
    with _bar("tokenizing", console) as bar:
        task = bar.add_task("")
        store = build_store(
            run.data.store,
            run.tokenizer,
            sources,
            progress=partial(_advance, bar, task),
        )
    plan = pack(run.data.plan, mixture_of(run.data), seq_length=run.data.seq_length, seed=run.train.seed)
    totals = store.totals().values()
    console.print(
        f"[bold]data[/bold]      {sum(t.documents for t in totals)} documents and conversations, "
        f"{sum(t.tokens for t in totals):,} tokens ({sum(t.trained_tokens for t in totals):,} trained), "
        f"packed into {len(plan)} samples of {plan.seq_length} ({plan.efficiency():.1%} filled)"
    )


def _import(run: RunConfig, console: Console) -> None:
    from latxa_megatron.convert.importer import import_hf

    assert run.model.checkpoint is not None
    with console.status("importing the weights"):
        import_hf(run.model.hf, run.model.checkpoint)
    console.print("[bold]import[/bold]    Hugging Face weights -> Megatron torch_dist checkpoint")


def _train(run_file: Path, run: RunConfig, console: Console) -> None:
    from latxa_megatron.launch.local import launch_local
    from latxa_megatron.train.metrics import read_metrics

    done = run.checkpoints / f"iter_{run.train.steps:07d}"
    nproc = run.parallel.tp * run.parallel.cp * run.parallel.pp
    if not done.is_dir():
        processes = f"{nproc} process{'es' if nproc > 1 else ''}"
        device.release_unused()  # the measured model's, which this process would hold on to meanwhile
        console.print(f"[bold]train[/bold]     megatron-core under torchrun, {processes}, {run.precision.dtype}")
        launch_local(run_file, nproc)
    losses = [line["loss"] for line in read_metrics(run.out)]
    console.print(
        f"[bold]trained[/bold]   {len(losses)} steps of {run.train.global_batch * run.data.seq_length} tokens, "
        f"loss {losses[0]:.2f} -> {losses[-1]:.2f}"
    )


def _export(out: Path, run: RunConfig, console: Console) -> Path:
    from latxa_megatron.convert.exporter import export_hf

    exported = out / "exported"
    with console.status("exporting the trained weights"):
        if not exported.exists():
            export_hf(run.checkpoints, exported)
    console.print("[bold]export[/bold]    Megatron checkpoint -> Hugging Face directory")
    return exported


def _measure(path: Path, hf: Path, run: RunConfig, data: Data, console: Console, when: str) -> Score:
    """Bits per byte on the held-out texts and continuations of the prompts; kept in a file once they are known."""
    from latxa_megatron.data.sources import find, held_out_documents
    from latxa_megatron.evaluate.model import Evaluated

    if not path.exists():
        corpus = run.data.sources["corpus_eu"]
        texts = {
            "eu": _texts(held_out_documents(find("corpus_eu", corpus.paths, corpus.hold_out)), "--corpus"),
            "en": _texts(held_out_documents(find("heldout_en", [str(data.heldout_en)], 1.0)), "heldout_en.jsonl"),
        }
        model = Evaluated(hf)
        scores: dict[str, float] = {}
        with _bar(f"measuring {when}", console) as bar:
            for language, documents in texts.items():
                task = bar.add_task(language, total=len(documents))
                scores[language] = model.bits_per_byte(documents, partial(_advance, bar, task))
        write_json(path, {"bpb": scores, "continuations": model.continuations(list(PROMPTS))})
    found = read_json(path)
    score = Score(found["bpb"], found["continuations"])
    console.print(f"[bold]measure[/bold]   {when}: Basque {score.bpb['eu']:.3f}, English {score.bpb['en']:.3f} bits per byte")
    return score


def _advance(bar: Progress, task: TaskID, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)


def _texts(documents: list[Any], what: str) -> list[str]:
    if not documents:
        raise LatxaError(f"{what}: none of its documents is held out to measure on; give more of them")
    return [document.text for document in documents]


def _bar(what: str, console: Console) -> Progress:
    return Progress(TextColumn(what), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console)
