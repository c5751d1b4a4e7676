"""report.json and report.html of a demo: two scores before and after, the loss curve, and what the model writes."""

from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from latxa_megatron.config import RunConfig
from latxa_megatron.files import read_json, write_atomically, write_json
from latxa_megatron.train.metrics import read_metrics

LANGUAGES = {"eu": "Basque", "en": "English"}


@dataclass(frozen=True)
class Score:
    """Bits per byte by language, and what the model wrote after each prompt."""

    bpb: dict[str, float]
    continuations: list[str]


def write_report(
    out: Path, run: RunConfig, before: Score, after: Score, prompts: list[str], *, seconds: float, peak_rss_gb: float
) -> Path:
    """Write OUT/report.json and OUT/report.html; the path of the page.

    A finished demo that is started again does no work, so seconds and memory stay those of the run that did it.
    """
    values: dict[str, Any] = {
        f"bpb_{language}_{when}": score.bpb[language]
        for language in LANGUAGES
        for when, score in (("before", before), ("after", after))
    }
    values["train_loss"] = [line["loss"] for line in read_metrics(run.out)]
    values["parallel"] = run.parallel.model_dump()
    values["precision"] = run.precision.dtype
    known = out / "report.json"
    first = read_json(known) if known.exists() else {"seconds": round(seconds, 1), "peak_rss_gb": round(peak_rss_gb, 2)}
    values.update(seconds=first["seconds"], peak_rss_gb=first["peak_rss_gb"])
    write_json(known, values)
    page = out / "report.html"
    write_atomically(page, _page(run, values, before, after, prompts))
    return page


def _page(run: RunConfig, values: dict[str, Any], before: Score, after: Score, prompts: list[str]) -> str:
    steps = len(values["train_loss"])
    facts = (
        f"{steps} steps of {run.train.global_batch * run.data.seq_length:,} tokens",
        f"{run.parallel.describe()}, {values['precision']}, distributed optimizer",
        f"{values['seconds'] / 60:.1f} minutes, {values['peak_rss_gb']:.1f} GB of memory",
    )
    return _PAGE.substitute(
        facts=" &middot; ".join(facts),
        scores="".join(_score(name, before.bpb[code], after.bpb[code]) for code, name in LANGUAGES.items()),
        curve=_curve(values["train_loss"]),
        samples="".join(_sample(*texts) for texts in zip(prompts, before.continuations, after.continuations, strict=True)),
    )


def _score(name: str, before: float, after: float) -> str:
    top = max(before, after)
    change = after / before - 1
    bars = "".join(
        f'<div class="row"><span class="when">{when}</span>'
        f'<span class="track"><span class="bar {when}" style="width:{100 * value / top:.1f}%"></span></span>'
        f"<b>{value:.2f}</b></div>"
        for when, value in (("before", before), ("after", after))
    )
    return f'<div class="card"><h3>{name}</h3><p class="change {"good" if change < 0 else "calm"}">{change:+.0%}</p>{bars}</div>'


def _curve(losses: list[float]) -> str:
    """The loss by step as an SVG line with a labelled grid."""
    width, height, left, right, top, bottom = 860, 300, 46, 14, 14, 34
    low, high = int(min(losses)), int(max(losses)) + 1
    last = max(len(losses), 2)

    def x(step: int) -> float:
        return left + (width - left - right) * (step - 1) / (last - 1)

    def y(loss: float) -> float:
        return top + (height - top - bottom) * (high - loss) / (high - low)

    parts = []
    for value in range(low, high + 1):
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text x="{left - 10}" y="{y(value) + 4:.1f}" text-anchor="end">{value}</text>')
    every = max(1, round(last / 6))
    for step in [1, *range(every, last + 1, every)]:
        parts.append(f'<text x="{x(step):.1f}" y="{height - 12}" text-anchor="middle">{step}</text>')
    points = " ".join(f"{x(i + 1):.1f},{y(loss):.1f}" for i, loss in enumerate(losses))
    area = f"{x(1):.1f},{y(low):.1f} {points} {x(len(losses)):.1f},{y(low):.1f}"
    parts.append(f'<polygon class="area" points="{area}"/><polyline class="line" points="{points}"/>')
    for i, loss in enumerate(losses):
        parts.append(f'<circle class="dot" cx="{x(i + 1):.1f}" cy="{y(loss):.1f}" r="2.5"/>')
    label = f"Training loss from {losses[0]:.2f} to {losses[-1]:.2f} over {len(losses)} steps"
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _sample(prompt: str, before: str, after: str) -> str:
    return (
        f'<div class="card"><p class="prompt">{escape(prompt)} &hellip;</p>'
        f'<div class="pair"><div><span class="tag">before</span><p>{escape(before)}</p></div>'
        f'<div><span class="tag new">after</span><p>{escape(after)}</p></div></div></div>'
    )


_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>latxa-megatron: a model learns Basque</title>
<style>
:root { --ink: #1d2a26; --soft: #63716b; --paper: #f6f4ee; --card: #fffdf8; --line: #e2ded2; --green: #1f7a55; --red: #b5402f; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", sans-serif; }
main { max-width: 940px; margin: 0 auto; padding: 48px 24px 64px; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 1.15rem; margin: 40px 0 4px; }
h3 { font-size: 1rem; margin: 0; }
.soft { color: var(--soft); margin: 0 0 14px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 18px 20px; }
.scores { display: grid; grid-template-columns: 1fr 1fr; gap: 16px; }
.change { font-size: 2.1rem; font-weight: 700; margin: 2px 0 10px; }
.good { color: var(--green); } .calm { color: var(--soft); }
.row { display: grid; grid-template-columns: 56px 1fr 44px; gap: 10px; align-items: center; font-size: 0.9rem; }
.when { color: var(--soft); }
.track { background: #eeeade; border-radius: 5px; height: 12px; }
.bar { display: block; height: 12px; border-radius: 5px; background: #b9b4a4; }
.bar.after { background: var(--green); }
svg { width: 100%; height: auto; display: block; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
.grid { stroke: var(--line); } .line { fill: none; stroke: var(--green); stroke-width: 2; }
.area { fill: var(--green); opacity: 0.08; } .dot { fill: var(--green); }
.samples { display: grid; gap: 14px; }
.prompt { font-weight: 600; margin: 0 0 8px; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 22px; font-size: 0.95rem; }
.pair p { margin: 6px 0 0; overflow-wrap: anywhere; white-space: pre-line; }
.tag { font-size: 0.75rem; padding: 1px 8px; border-radius: 9px; background: #eeeade; color: var(--soft); }
.tag.new { background: #dcefe5; color: var(--green); }
@media (max-width: 640px) { .scores, .pair { grid-template-columns: 1fr; } }
</style>
</head>
<body>
<main>
<h1>A model learns Basque</h1>
<p class="soft">$facts</p>
<h2>Bits per byte on texts it was not trained on</h2>
<p class="soft">How many bits the model needs for each byte of text. Less is better.</p>
<div class="scores">$scores</div>
<h2>Training loss</h2>
<p class="soft">Nats per trained token, by step.</p>
<div class="card">$curve</div>
<h2>What it writes</h2>
<p class="soft">The most probable continuation of three beginnings.</p>
<div class="samples">$samples</div>
</main>
</body>
</html>
""")
