"""The sections of a run file that are no plugin's: what the stages are told."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from radistill import plugins
from radistill.backends.base import Backend
from radistill.filters import FilterSettings
from radistill.records import Labels, Sampling
from radistill.settings import Settings

BACKEND = "transformers"
"""What writes text where the run file names nothing."""


class GenerateSettings(Settings):
    """Stage 1."""

    backend: Backend = Field(default_factory=lambda: plugins.default("backends", BACKEND))
    """What writes text: `transformers`, `vllm`, `openai`, `ray`, `echo`; also used to predict."""
    sampling: Sampling = Sampling()
    """How rationales are drawn. Its seed is the run's."""
    ledger: str = Field("runs/ledger", min_length=1)
    """Folder of all generations; may be shared by any number of runs."""
    max_attempts: int = Field(3, ge=1)
    """A request that has failed so often is not asked again: it is counted, and its example is rejected."""
    teacher: str | None = None
    """Hub id or folder of another model that writes about the examples; null = the untouched model itself."""
    filters: FilterSettings = FilterSettings()
    """Which rationales are trained on."""
    keep_tokens: int | None = Field(None, ge=1)
    """Only the first so many tokens of what was written about an example are trained on, without an end-of-turn."""
    refresh_every: int | None = Field(None, ge=1)
    """After every so many optimizer steps the model in training writes anew about every example; null = never."""

    @field_validator("ledger")
    @classmethod
    def _home(cls, value: str) -> str:
        return str(Path(value).expanduser())

    @field_validator("sampling")
    @classmethod
    def _the_seed_is_the_runs(cls, sampling: Sampling) -> Sampling:
        if sampling.seed:
            raise ValueError("takes its seed from the run: set `seed` at the top of the run file")
        return sampling


class LoraSettings(Settings):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) through PEFT."""

    r: int = Field(16, ge=1)
    """Rank."""
    alpha: int = Field(32, ge=1)
    """The update is scaled by alpha / r."""
    dropout: float = Field(0.05, ge=0, lt=1)
    """Dropout on the adapter's input."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """`all-linear` (all but the output head) or names of modules."""


class TrainSettings(Settings):
    """Stage 3. Names are those of transformers' TrainingArguments where one exists."""

    weighting: Literal["tokens", "segments"] = "tokens"
    """`tokens`: the weighted mean over all trained tokens (the paper); `segments`: each origin averaged by itself."""
    labels: Labels = "hard"
    """What a token that the untouched model wrote is compared with. `hard`: the token itself; `stored`: what that model
    expected there, from the `label_top_k` most probable tokens and the rest as one; `live`: all it expects, asked again
    in every step. Soft labels are compared by KL(untouched || model) in nats."""
    label_top_k: int = Field(64, ge=1)
    """So many tokens are stored for each soft label."""
    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate."""
    num_train_epochs: float = Field(1.0, gt=0)
    """Passes over the records."""
    max_steps: int = Field(-1, ge=-1)
    """Stop after so many optimizer steps; -1 = after the epochs."""
    per_device_train_batch_size: int = Field(8, ge=1)
    """Records per device and forward pass."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """Forward passes per optimizer step; means are over all of them."""
    auto_find_batch_size: bool = False
    """Where memory does not suffice, halve the batch size and double the accumulation; each optimizer step stays as it
    is. The longest records are tried before the first step."""
    lr_scheduler_type: str = "cosine"
    """transformers' name of a schedule."""
    warmup_steps: float = Field(0.03, ge=0)
    """Steps of warm-up; below 1 a share of all steps."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this norm."""
    optim: str = "adamw_torch"
    """transformers' name of an optimizer."""
    bf16: bool = True
    """bfloat16 arithmetic; trained weights stay in float32."""
    gradient_checkpointing: bool = False
    """Less memory for about a third more time."""
    packing: bool = True
    """Put several short records into one row, with attention kept apart; changes speed, not the loss."""
    attn_implementation: Literal["sdpa", "eager"] | None = None
    """Attention kernel; packing is proven for these two. null = sdpa."""
    max_length: int | None = Field(None, ge=8)
    """Tokens of the longest record that is trained on; null = the model's context."""
    on_long: Literal["error", "drop", "cut_rationale"] = "drop"
    """What becomes of a longer record. `error`: the run stops; `drop`: it is left out and counted; `cut_rationale`: its
    rationale is cut at the end, without an end-of-turn. References are never cut: what is still too long is dropped."""
    logging_steps: int = Field(10, ge=1)
    """Steps between two lines of train_log.jsonl."""
    save_steps: int = Field(500, ge=1)
    """Steps between two checkpoints; Ctrl-C saves one too."""
    save_total_limit: int = Field(2, ge=1)
    """So many checkpoints are kept."""
    watchdogs: bool = True
    """Stop, with a checkpoint, where gradients or the learning rate are zero, nothing is trained or a loss explodes."""
    report_to: str | tuple[str, ...] = "none"
    """Trackers, passed on to transformers: tensorboard, wandb, mlflow, trackio …"""
    lora: LoraSettings | None = LoraSettings()
    """Adapters; null = full fine-tuning, with weights in float32."""


class ReportSettings(Settings):
    """Stage 5."""

    margin: float = Field(0.02, gt=0, lt=1)
    """Non-inferiority margin of retention: how much may be lost and still count as retained."""
    examples: int = Field(40, ge=0)
    """So many predictions are shown side by side."""
