"""The sections of a run file, each a class; an unknown key or a wrong type in one is refused by name."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from latxa_megatron.errors import LatxaError
from latxa_megatron.weight import Weight

Share = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSection(Section):
    hf: Path = Field(description="Hugging Face directory of the backbone: sizes, tokenizer and chat template")
    checkpoint: Path | None = Field(None, description="Megatron checkpoint whose weights training starts from")


class SourceSection(Section):
    paths: list[str] = Field(
        min_length=1, description="files or globs (JSONL, Parquet, Arrow), data sets' directories, hf: names"
    )
    epochs: Annotated[float, Field(gt=0)] | None = Field(
        None, description="how often each document is seen; 0.5 takes half of them; 1 where neither it nor weight is given"
    )
    weight: str | float | None = Field(
        None, description="instead of epochs: tokens of this source to see, as 500M, or their share of all tokens, as 0.3 or 30%"
    )
    field: str = Field("text", description="the field of a line that has a document's text")
    hold_out: Share = Field(0.0, description="share of the documents kept out of training, chosen by a hash of their id")
    tokens: PositiveInt | None = Field(
        None, description="tokens of one epoch where they are known; `recipes list` alone reads it"
    )

    @model_validator(mode="after")
    def _one_amount(self) -> "SourceSection":
        if self.weight is not None and self.epochs is not None:
            raise ValueError("a source has epochs or a weight, not both; where its base has the other, say null for that")
        try:
            self.mixed()
        except LatxaError as error:
            raise ValueError(str(error)) from None
        return self

    def mixed(self) -> float | Weight:
        """How much of the source is seen: its epochs, or its weight."""
        if self.weight is not None:
            return Weight.parse(self.weight)
        return 1.0 if self.epochs is None else self.epochs

    def describe(self) -> str:
        """As in "x4" or "30%"."""
        amount = self.mixed()
        return str(amount) if isinstance(amount, Weight) else f"x{amount:g}"


class DataSection(Section):
    sources: dict[str, SourceSection] = Field(default_factory=dict, description="what `latxa data build` reads")
    tokenizer: Path | None = Field(None, description="directory or file of the tokenizer; model.hf where it is not given")
    store: Path = Field(description="token store; data/NAME/store where it is not given, NAME being the run's")
    plan: Path = Field(description="pack plan, or an export of one; data/NAME/plan where it is not given")
    seq_length: PositiveInt = 8192
    special_tokens: Literal["text", "encode", "error"] = Field(
        "text", description="control tokens that stand literally in a text are text, control tokens, or an error"
    )
    on_error: Literal["stop", "skip"] = Field("stop", description="at a line that is no record: stop, or leave it out and say so")
    packing: Literal["best_fit", "concat"] = Field(
        "best_fit", description="concat lays all documents end to end and cuts them at every seq_length positions"
    )


class ParallelSection(Section):
    tp: PositiveInt = Field(1, description="tensor parallel, with sequence parallelism from 2 on")
    pp: PositiveInt = Field(1, description="pipeline parallel")
    cp: PositiveInt = Field(1, description="context parallel: each document's positions are spread over so many ranks")
    vp: PositiveInt = Field(1, description="virtual pipeline stages (model chunks) on each pipeline rank")
    stages: list[int] | None = Field(None, description="layers of each of the pp x vp stages; equal where it is not given")
    tp_overlap: bool = Field(False, description="tensor-parallel messages beside the products (Transformer Engine's userbuffers)")

    def describe(self) -> str:
        """As in "TP4 PP8 VP5"; "one process" where nothing is split."""
        sizes = {"TP": self.tp, "CP": self.cp, "PP": self.pp, "VP": self.vp}
        return " ".join(f"{name}{size}" for name, size in sizes.items() if size > 1) or "one process"


class PrecisionSection(Section):
    dtype: Literal["bf16", "fp32"] = "bf16"
    fp8: Literal["none", "tensorwise", "delayed", "blockwise", "mxfp8"] = Field(
        "none", description="Transformer Engine FP8 recipe; needs an H100 or newer, and mxfp8 a B200 or newer"
    )
    fp8_params: bool = Field(False, description="the layers' weights are kept in FP8, beside the optimizer's in fp32")
    fp8_head: bool = Field(False, description="the output head is computed in FP8 too")
    bf16_layers: list[NonNegativeInt] = Field(
        [0, 0], min_length=2, max_length=2, description="so many first and last layers stay in bf16 under fp8"
    )
    gradients: Literal["fp32", "bf16"] = Field("fp32", description="what gradients are summed in")

    def check(self) -> None:
        """Raise ValueError for what does not go together."""
        if self.dtype == "fp32" and self.gradients == "bf16":
            raise ValueError("precision.gradients: bf16 sums go with bf16 weights; set it to fp32")
        if self.fp8 == "none":
            for name in ("fp8_params", "fp8_head"):
                if getattr(self, name):
                    raise ValueError(f"precision.{name}: goes with an FP8 recipe, and precision.fp8 is none")
        elif self.dtype == "fp32":
            raise ValueError("precision.dtype: FP8 products go with bf16 weights; set it to bf16")
        if self.fp8 == "delayed" and (self.fp8_head or any(self.bf16_layers)):
            raise ValueError("precision.fp8: delayed scaling is for all layers and no head; choose tensorwise")


class OptimizerSection(Section):
    lr: Annotated[float, Field(gt=0)] = 1e-5
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = Field(0.33, description="final learning rate, as a share of lr")
    warmup: Annotated[float, Field(ge=0, le=1)] = Field(0.1, description="share of the steps with a rising learning rate")
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    beta1: Share = 0.9
    beta2: Share = 0.95
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    clip_grad: Annotated[float, Field(ge=0)] = Field(1.0, description="largest gradient norm; 0 does not clip")


class TrainSection(Section):
    steps: PositiveInt | None = Field(None, description="optimizer steps; the whole plan once where it is not given")
    global_batch: PositiveInt = Field(256, description="samples in a step")
    micro_batch: PositiveInt = 1
    recompute: Annotated[int, Field(gt=0, strict=True)] | Literal["none", "selective"] = Field(
        "none",
        description="activations computed again in backward: those of attention alone (selective), or N layers of each stage",
    )
    neftune_alpha: Annotated[float, Field(ge=0)] = Field(0, description="NEFTune noise on the embeddings; 0 adds none")
    neftune_length: Literal["packed", "document"] = Field(
        "packed", description="the L of NEFTune's alpha / sqrt(L d): a sample's positions, or a document's"
    )
    seed: int = 33
    cuda_graph: bool = Field(False, description="start a step's kernels from one CUDA graph; for models whose kernels are short")
    deterministic: bool = Field(False, description="the same bits each time on the same GPUs and layout; slower")


class CheckpointSection(Section):
    every: PositiveInt | None = Field(
        100, description="steps between checkpoints; the last step always saves one; null saves none unless a signal asks"
    )
    keep: PositiveInt = Field(2, description="how many of the newest checkpoints stay")
    keep_every: PositiveInt | None = Field(None, description="checkpoints at multiples of so many steps stay as well")
    async_save: bool = Field(True, description="write beside the training that goes on; costs a copy of the state in host memory")


class GuardSection(Section):
    loss_spike: Annotated[float, Field(gt=1)] | None = Field(
        3.0, description="a step whose loss is so many times the median of the last 100 is not applied; null allows any"
    )
    grad_norm_spike: Annotated[float, Field(gt=1)] | None = Field(100.0, description="the same for the gradient norm")
    skips: NonNegativeInt = Field(3, description="steps in a row that may be passed over; the next one rolls back")
    rollbacks: NonNegativeInt = Field(
        2, description="how often a run may go back to its last checkpoint and leave out the samples since; then it stops"
    )
    hang_minutes: Annotated[float, Field(gt=0)] | None = Field(
        30, description="a step, validation or save that takes longer ends the run, with a report of where each rank stands"
    )


class LoggingSection(Section):
    tensorboard: bool = Field(False, description="write OUT/tensorboard too, beside metrics.jsonl")
    wandb: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="project of Weights & Biases to log to; the environment's WANDB_MODE=offline sends nothing"
    )


class ValidationSection(Section):
    plans: dict[str, Path] = Field(default_factory=dict, description="pack plans that are validated on, whole, by name")
    every: PositiveInt = Field(100, description="steps between validations; the last step always has one")


class ScaleSection(Section):
    """What a recipe states about its size, and the GPUs that it is planned for. Training reads none of it."""

    backbone: str | None = Field(None, description="the backbone's name; the last part of model.hf where it is not given")
    parameters: PositiveInt | None = Field(None, description="the backbone's parameters in matrix products, head included")
    gpus: PositiveInt | None = Field(None, description="how many GPUs the layout was made for")
    gpu: str | None = Field(None, description="which GPU, by the name that `latxa plan` has for it, as h100-80g")
