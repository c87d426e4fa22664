"""The sections of a run file that are no plugin's: what the stages are told."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

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
    use_dora: bool = False
    """Weights are split into magnitude and direction, which are trained apart (DoRA, Liu et al. 2024, arXiv
    2402.09353)."""
    use_rslora: bool = False
    """The update is scaled by alpha / sqrt(r) (Kalajdzievski 2023, arXiv 2312.03732)."""
    loraplus_lr_ratio: float | None = Field(None, gt=0)
    """So many times `learning_rate` for the second factor of each update, which starts at zero (LoRA+, Hayou et al.
    2024, arXiv 2402.12354, which finds 16 good); null = the same for both."""


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
    optim: str = "adamw_torch_fused"
    """transformers' name of an optimizer."""
    bf16: bool = True
    """bfloat16 arithmetic; trained weights stay in float32, frozen ones are bfloat16."""
    quantization: Literal["nf4"] | None = None
    """The frozen weights under an adapter in 4 bits (QLoRA, Dettmers et al. 2023, arXiv 2305.14314) by bitsandbytes,
    twice quantised; computed with in bfloat16 or, without `bf16`, in float32. null = as they are."""
    gradient_checkpointing: bool = False
    """Less memory for about a third more time."""
    packing: bool = True
    """Put several short records into one row, with attention kept apart; changes speed, not the loss."""
    attn_implementation: Literal["sdpa", "eager", "flex_attention", "flash_attention_2", "flash_attention_3"] | None = (
        None
    )
    """Attention kernel; null = sdpa. All but the first two need a GPU; `flash_attention_*` need packages of their own,
    and read a packed batch as one row. Before the first step each is asked whether it keeps packed records apart."""
    torch_compile: bool = False
    """Compile the layers with `torch.compile` (inductor); worth its minute of warm-up in long trainings on a GPU."""
    use_liger_kernel: bool = False
    """Liger's fused norms, rotations and activations (GPU; `pip install liger-kernel`); the loss is radistill's own."""
    activation_offload: bool = False
    """What the backward pass needs waits in the memory of the CPU: for long records, where `gradient_checkpointing`
    does not suffice; slower."""
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
    eval_steps: int | None = Field(None, ge=1)
    """After every so many optimizer steps, and after the last, the model in training answers validation items: those of
    `data.validation`, and further ones of the tasks that bring their own. null = never."""
    eval_items: int = Field(100, ge=2)
    """So many validation items of each task that brings its own, or all that are left beside its tests."""
    metric_for_best_model: Literal["skill", "retention", "both"] = "both"
    """Score of an evaluation: new skill in points, 100 x retention, or the first and `exchange_rate` x the second."""
    exchange_rate: float = Field(1.0, ge=0)
    """So many points of the new skill are worth as much as one hundredth of retention."""
    load_best_model_at_end: bool = False
    """The result is the evaluated model of the highest score, not the last one."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """Stop after so many evaluations in a row without progress; null = never."""
    early_stopping_on: Literal["frontier", "score"] = "frontier"
    """What progress is. `frontier`: nothing before, nor the untouched model, is as good in both new skill and
    retention; `score`: the score is the highest so far."""
    devices: int | None = Field(None, ge=1)
    """So many processes train together, each on a GPU of its own; null = all visible GPUs, or 1 on a CPU. Each takes
    `per_device_train_batch_size` records, so the batch grows with them."""
    parallel: Literal["ddp", "fsdp2", "zero2", "zero3"] = "ddp"
    """What several devices share. `ddp`: the records alone; `zero2`: also gradients and optimizer; `fsdp2`, `zero3`:
    also the weights. `zero2` and `zero3` need DeepSpeed. Equal results but for rounding."""
    watchdogs: bool = True
    """Stop, with a checkpoint, where gradients or the learning rate are zero, nothing is trained or a loss explodes."""
    report_to: str | tuple[str, ...] = "none"
    """Trackers, passed on to transformers: tensorboard, wandb, mlflow, trackio …"""
    lora: LoraSettings | None = LoraSettings()
    """Adapters; null = full fine-tuning, with weights in float32."""

    @model_validator(mode="after")
    def _choosing_needs_evaluations(self) -> "TrainSettings":
        wanted = {
            "load_best_model_at_end": self.load_best_model_at_end,
            "early_stopping_patience": self.early_stopping_patience is not None,
        }
        if self.eval_steps is None and (named := [name for name, is_set in wanted.items() if is_set]):
            raise ValueError(
                f"{' and '.join(named)} need eval_steps: after how many steps the model is to be evaluated"
            )
        return self


class ReportSettings(Settings):
    """Stage 5."""

    margin: float = Field(0.02, gt=0, lt=1)
    """Non-inferiority margin of retention: how much may be lost and still count as retained."""
    examples: int = Field(40, ge=0)
    """So many predictions are shown side by side."""
