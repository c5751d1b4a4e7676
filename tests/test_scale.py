"""The recipes' sizes, layouts and memory, by hand: none of them can be run here at its size."""

import pytest

from latxa_megatron import recipes
from latxa_megatron.config import load_run
from latxa_megatron.model.layout import check_layout
from latxa_megatron.model.llama import LlamaShape
from latxa_megatron.scale import Scale, scale
from latxa_megatron.train.check import layout
from latxa_megatron.train.flops import matrix_parameters

LLAMA_8B = LlamaShape(32, 4096, 14336, 32, 8, 128, 128256, 131072, 1e-5, 500000.0, 8.0, False)
LLAMA_70B = LlamaShape(80, 8192, 28672, 64, 8, 128, 128256, 131072, 1e-5, 500000.0, 8.0, False)
SMOLLM2 = LlamaShape(30, 576, 1536, 9, 3, 64, 49152, 8192, 1e-5, 100000.0, None, True)

STUDY = [name for name in recipes.names(bases=False) if name != "demo"]


def shape(name: str) -> LlamaShape:
    return SMOLLM2 if name == "demo" else LLAMA_70B if "70b" in name else LLAMA_8B


@pytest.mark.parametrize("name", recipes.names(bases=False))
def test_parameters_are_the_backbones(name):
    """8B: 32 layers of 4096 x (2 x 4096 + 2 x 1024 + 3 x 14336) and a head of 4096 x 128256; the others in the same way."""
    by_hand = {LLAMA_8B: 7_504_658_432, LLAMA_70B: 69_501_714_432, SMOLLM2: 134_479_872}[shape(name)]
    assert load_run(recipes.path(name)).scale.parameters == matrix_parameters(shape(name)) == by_hand


def test_tokens_and_flops():
    """4 x 4.2B tokens are 16.8B, at 6 x 7,504,658,432 FLOPs each; the demo has 26 steps of 4 x 256 positions."""
    assert scale(load_run(recipes.path("exp_2_100"))) == Scale(16_800_000_000, 756_469_569_945_600_000_000, True)
    assert scale(load_run(recipes.path("demo"))) == Scale(26_624, 21_482_352_672_768, True)
    part = scale(load_run(recipes.path("latxa_70b")))  # how many tokens its instructions have is not known
    assert (part.tokens, part.whole, part.describe()) == (16_800_000_000, False, ("16.8B+", "7.01e+21+"))
    assert scale(load_run(recipes.path("exp_0_010"))) == Scale(0, 0, False)


def test_epochs_and_what_is_held_out_count():
    stated = ["data.sources.corpus_eu.epochs=0.5", "data.sources.corpus_eu.hold_out=0.25", "data.sources.corpus_eu.tokens=800"]
    assert scale(load_run(recipes.path("exp_2_100"), stated)).tokens == 300


def test_the_70bs():
    """GPUs and precision that the runs were asked for, each with the study's batch."""
    asked = {"": (64, "tensorwise"), "_32gpu": (32, "tensorwise"), "_bf16": (64, "none"), "_a100": (256, "none")}
    assert {name for name in STUDY if "70b" in name} == {f"latxa_70b{ending}" for ending in asked}
    for ending, expected in asked.items():
        run = load_run(recipes.path(f"latxa_70b{ending}"))
        assert (run.scale.gpus, run.precision.fp8, run.precision.dtype) == (*expected, "bf16")
        assert (run.train.global_batch, run.data.seq_length, list(run.data.sources)) == (
            512,
            8192,
            ["corpus_eu", "instructions_en"],
        )


@pytest.mark.parametrize("name", STUDY)
def test_a_layout_divides_its_gpus_and_its_batch(name):
    run = load_run(recipes.path(name))
    check_layout(shape(name), layout(run))
    data_parallel, left = divmod(run.scale.gpus, run.parallel.tp * run.parallel.pp)
    assert left == 0
    microbatches, left = divmod(run.train.global_batch, data_parallel * run.train.micro_batch)
    assert left == 0
    assert run.parallel.vp == 1 or microbatches % run.parallel.pp == 0
    assert run.data.seq_length % (run.parallel.tp * 16) == 0


FULLEST = {"latxa_70b": 68, "latxa_70b_32gpu": 69, "latxa_70b_bf16": 60, "latxa_70b_a100": 51}


@pytest.mark.parametrize("name", STUDY)
def test_the_fullest_stage_fits_its_gpu(name):
    """In GB of 10^9 bytes, as the recipes say it; 4 are left for logits, NCCL and CUDA.

    A parameter: 2 bytes, as FP8 in both directions too, 4 of gradient, 12 / dp of the optimizer's; two more in a head in FP8.
    What a layer keeps of a position, in bytes times its hidden size: both norms' inputs 2 + 2 and outputs 2 + 2, queries 2, keys
    and values 4 kv_heads / heads, attention's output 2, and times the feed-forward's size 4 and, past SwiGLU, 2. Under FP8 a
    product's input is kept in one byte, and attention's output in bf16 too. 1F1B has pp - r microbatches in flight at stage r.
    """
    run, s = load_run(recipes.path(name)), shape(name)
    p, fp8 = run.parallel, run.precision.fp8 != "none"
    assert (run.precision.fp8_params, run.precision.fp8_head) == (fp8, fp8)
    assert (p.vp, run.train.recompute, run.train.micro_batch, run.precision.gradients) == (1, "none", 1, "fp32")
    ffn, kv = s.ffn / s.hidden, s.kv_heads / s.heads
    kept = (11 + 4 * kv + 5 * ffn if fp8 else 12 + 4 * kv + 6 * ffn) * s.hidden * run.data.seq_length / p.tp
    layer = s.hidden * (2 * s.hidden + 2 * kv * s.hidden + 3 * s.ffn) / p.tp
    end = s.vocab * s.hidden / p.tp
    each = 6 + 12 * p.tp * p.pp / run.scale.gpus
    stages = []
    for r, layers in enumerate(p.stages or [s.layers // p.pp] * p.pp):
        ends = (r == 0) + (r == p.pp - 1)
        stages.append(layers * (layer * each + (p.pp - r) * kept) + ends * end * each + (r == p.pp - 1) * 2 * fp8 * end)
    fullest = max(stages) / 1e9
    assert fullest + 4 < int(run.scale.gpu.split("-")[1].removesuffix("g"))
    assert round(fullest) == FULLEST.get(name, 54)
