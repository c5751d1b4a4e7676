import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from latxa_megatron.config import load_run
from latxa_megatron.convert.importer import import_hf
from latxa_megatron.data.mixture import Mix
from latxa_megatron.data.packing import pack
from latxa_megatron.train.loop import train
from tests.data.writers import write_tokenizer
from tests.tiny import random_documents, write_llama, write_store

SEQ_LENGTH = 64
GLOBAL_BATCH = 4
STEPS = 20

ONE_PROCESS = {
    "one process": [],
    "micro batch 2": ["train.micro_batch=2", "train.deterministic=true"],
    "recomputed attention": ["train.recompute=selective"],
    "two recomputed layers": ["train.recompute=2"],
}
FAST_ROPE = {"rope_type": "default", "rope_theta": 10.0}
OTHERS = {  # models beside the usual one
    "tied": {"tied": True, "seed": 2},
    # Softmax does not see a shift that all keys share: a bias of keys is felt through RoPE alone. At the usual base the slowest
    # pairs hardly turn within a document: their biases' gradients are so small that fp32's rounding shows in AdamW's updates.
    "qwen2": {"family": "Qwen2", "seed": 3, "rope": FAST_ROPE},
    "qwen3": {"family": "Qwen3", "seed": 4, "head_dim": 16},
}


def _of(name: str) -> list[str]:
    return [f"model.hf={{root}}/{name}", f"model.checkpoint={{root}}/{name}_ckpt"]


NOISY = ["train.neftune_alpha=5", "train.steps=5"]
VALIDATED = [  # noise and a step that changes nothing: the scores are those of the imported weights
    *("train.steps=1", "train.micro_batch=2", "train.neftune_alpha=5", "optimizer.lr=1e-12", "optimizer.weight_decay=0"),
    *("data.tokenizer={root}/tokenizer", "validation.plans.other={root}/other_plan"),
]
VALIDATED_IN_TWO = {
    "validated dp2": VALIDATED,
    "validated tp2": [*VALIDATED, "parallel.tp=2"],
    "validated cp2": [*VALIDATED, "parallel.cp=2"],
    "validated pp2 vp2": [*VALIDATED, "train.micro_batch=1", "parallel.pp=2", "parallel.vp=2"],
}
WITH_NOISE = {
    "noisy tp2": ["parallel.tp=2", *NOISY],
    "noisy cp2": ["parallel.cp=2", *NOISY],
    "noisy pp2 vp2": ["parallel.pp=2", "parallel.vp=2", *NOISY],
}
TWO_PROCESSES = {
    "tp2 with sequence parallelism": ["parallel.tp=2"],
    "pp2": ["parallel.pp=2"],
    "pp2, uneven stages": ["parallel.pp=2", "parallel.stages=[3,1]"],
    "pp2 with virtual stages": ["parallel.pp=2", "parallel.vp=2"],
    "pp2, tied embeddings": ["parallel.pp=2", *_of("tied")],
    "cp2": ["parallel.cp=2", "train.micro_batch=2"],
    "dp2": [],
}
FEW = 5
FAMILIES_IN_TWO = {  # biases are split over ranks; norms of queries and keys are not, and each rank sees its own heads alone
    f"tp2, {family}": ["parallel.tp=2", *_of(family), f"checkpoint.every={STEPS}"] for family in ("qwen2", "qwen3")
}
FOUR_PROCESSES = {
    "tp2 cp2": ["parallel.tp=2", "parallel.cp=2", f"train.steps={FEW}"],
    "cp2 pp2 vp2": ["parallel.cp=2", "parallel.pp=2", "parallel.vp=2", f"train.steps={FEW}"],
}
SHORT = ["train.steps=9", "checkpoint.every=3"]
FAULTY = [*SHORT, "guard.skips=1"]
FAULTY_IN_TWO = {  # the calls of forward and backward that give no number, for runs_worker.py
    "rolled back dp2": ["faulty=5,6,7,8", *FAULTY],
    "rolled back pp2 vp2": ["faulty=5,6,7,8", *FAULTY, "parallel.pp=2", "parallel.vp=2"],
}
KILLED = {"killed pp2": ["parallel.pp=2", "precision.dtype=bf16", *SHORT], "killed dp2": SHORT}


class TinyRun:
    """A run of a tiny Llama on packed random documents: its files, and ways to train it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.hf = write_llama(root / "hf")
        import_hf(self.hf, root / "ckpt")
        for name, options in OTHERS.items():
            import_hf(write_llama(root / name, **options), root / f"{name}_ckpt")
        self.documents, self.spans = random_documents(600)
        store = write_store(root / "store", self.documents, self.spans)
        self.plan = pack(root / "plan", [Mix(store, {})], seq_length=SEQ_LENGTH, seed=5)
        write_tokenizer(root / "tokenizer")
        self.other_documents, self.other_spans = random_documents(41, seed=9)
        other = write_store(root / "other_store", self.other_documents, self.other_spans)
        self.other_plan = pack(root / "other_plan", [Mix(other, {})], seq_length=SEQ_LENGTH, seed=5)
        self.file = root / "run.yaml"
        self.file.write_text(
            yaml.safe_dump(
                {
                    "name": "tiny",
                    "out": str(root / "out"),
                    "model": {"hf": str(self.hf), "checkpoint": str(root / "ckpt")},
                    "data": {"store": str(store), "plan": str(root / "plan"), "seq_length": SEQ_LENGTH},
                    "precision": {"dtype": "fp32"},
                    "optimizer": {"lr": 1e-3, "warmup": 0.2, "min_lr_ratio": 0.1, "weight_decay": 0.1},
                    "checkpoint": {"every": None},
                    "train": {"steps": STEPS, "global_batch": GLOBAL_BATCH, "micro_batch": 1},
                }
            )
        )

    def out(self, name: str) -> Path:
        return self.root / "runs" / name

    def _overrides(self, name: str, overrides: list[str]) -> list[str]:
        return [f"out={self.out(name)}", *(override.format(root=self.root) for override in overrides)]

    def train_here(self, name: str, overrides: list[str]) -> None:
        train(load_run(self.file, self._overrides(name, overrides)))

    def train_in_processes(self, count: int, variants: dict[str, list[str]]) -> None:
        """All variants in one start of torchrun: a start takes longer than a run."""
        runs = [self._overrides(name, overrides) for name, overrides in variants.items()]
        worker = Path(__file__).with_name("runs_worker.py")
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        subprocess.run([*torchrun, str(worker), str(self.file), json.dumps(runs)], check=True)

    def command(self, name: str, overrides: list[str]) -> list[str]:
        """`latxa launch local` on two processes."""
        latxa = [sys.executable, "-m", "latxa_megatron", "launch", "local", str(self.file), "--nproc", "2"]
        return [*latxa, f"out={self.out(name)}", *overrides]


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> TinyRun:
    return TinyRun(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def finished(tiny_run) -> TinyRun:
    """Every variant trained to its end. "moved" goes on, under another layout, from step 6 of "short"."""
    for name, overrides in {**ONE_PROCESS, "short": SHORT, "noisy": NOISY, "validated": VALIDATED}.items():
        tiny_run.train_here(name, overrides)
    half = Path("checkpoints") / "iter_0000006"
    shutil.copytree(tiny_run.out("short") / half, tiny_run.out("moved") / half)
    tiny_run.train_in_processes(4, FOUR_PROCESSES)
    tiny_run.train_in_processes(
        2,
        {
            **TWO_PROCESSES,
            **FAMILIES_IN_TWO,
            **WITH_NOISE,
            **VALIDATED_IN_TWO,
            **KILLED,
            **FAULTY_IN_TWO,
            "moved": ["parallel.tp=2", *SHORT, "checkpoint.every=null"],
        },
    )
    return tiny_run
