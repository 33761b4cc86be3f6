"""Runs training from recipe to checkpoint folder, on transformers' Trainer; knows no loss and no data format.

The run's state is in `OUTPUT/run`. Started again with the same recipe, a run continues from its last save with the same
batches, so its losses are those of a run that was never stopped. Several processes share each step; the main one
writes.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import save_fsdp_optimizer
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import SCHEDULER_NAME

from gistlm.errors import ModelError
from gistlm.files import write_atomically
from gistlm.gisting.placement import Condition
from gistlm.models.checkpoint import Checkpoint
from gistlm.models.config import Recipe
from gistlm.training import saves
from gistlm.training.batches import Batch, Collator, Draws, Examples
from gistlm.training.config import TrainConfig
from gistlm.training.distributed import (
    check_launch,
    gather,
    hold_last_layers,
    is_sharded,
    part_parameters,
    start_moments,
)
from gistlm.training.objectives import LossWeights, frozen_loss, paper_loss, passes_of, sum_over_processes
from gistlm.training.start import create_checkpoint
from gistlm.training.teacher import Teacher
from gistlm.training.tokenized import Texts, Tokenized
from gistlm.training.validation import Validation

logger = logging.getLogger(__name__)

LEARNED = ("gist_embeddings", "fit_strengths", "probe_embeddings")
"""Attributes of `Checkpoint` that can be trained, beside the weights of its models."""


class Objective(nn.Module):
    """A checkpoint and its recipe's loss as one module, as Trainer needs it."""

    def __init__(self, checkpoint: Checkpoint, config: TrainConfig) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.options = config
        self.writer = checkpoint.writer
        if is_sharded() and config.recipe == Recipe.FROZEN:  # else the reader is in the writer
            part_parameters(checkpoint.reader)
            self.reader = checkpoint.reader
        # accelerate's FSDP shards such layers one by one
        self._no_split_modules = checkpoint.reader._no_split_modules
        for name in LEARNED:
            setattr(self, name, getattr(checkpoint, name))
        self.passes = passes_of(checkpoint)
        self.teacher = Teacher(self.passes, config.teacher_cache) if config.teacher_cache else None
        self.base_dtype = checkpoint.reader.dtype
        if config.lora_rank is None:
            checkpoint.reader.float()  # steps are smaller than a weight's last bit in half precision
        self.tokens = 0

    def train(self, mode: bool = True) -> Objective:
        """Set training mode under `paper` only: under `frozen` the base must run as it does in use, without dropout."""
        return super().train(mode and self.options.recipe == Recipe.PAPER)

    def _in_base_dtype(self) -> torch.autocast:
        """Compute in bfloat16 if that is the base's dtype and its weights are trained in float32."""
        mixed = self.base_dtype == torch.bfloat16 != self.checkpoint.reader.dtype
        return torch.autocast(self.checkpoint.reader.device.type, torch.bfloat16, enabled=mixed)

    def trainable(self) -> dict[str, Tensor]:
        """Tensors that the run trains, by name."""
        return {name: tensor for name, tensor in self.named_parameters() if tensor.requires_grad}

    def give_weights_to_checkpoint(self) -> None:
        """Set this module's `LEARNED` tensors on the checkpoint too, because FSDP replaces them for each pass."""
        for name in LEARNED:
            setattr(self.checkpoint, name, getattr(self, name))

    def load(self, save: Path) -> None:
        """Load weights and token count from a save."""
        saved = saves.read_weights(save)
        for name, tensor in self.trainable().items():
            tensor.data.copy_(saved[name])
        self.tokens = saves.read_tokens(save)

    def forward(self, **tensors: Tensor) -> dict[str, Tensor]:
        """The loss of one batch. tensors: the fields of `Batch`."""
        self.give_weights_to_checkpoint()
        if is_sharded():
            hold_last_layers([self.checkpoint.reader, self.checkpoint.writer])
        batch = Batch(**tensors)
        self.tokens += int(sum_over_processes(torch.tensor(batch.tokens, device=batch.rests.device)))
        options = self.options
        if options.recipe == Recipe.PAPER:
            with self._in_base_dtype():
                loss = paper_loss(self.passes, batch, Condition(options.condition))
                if options.full_prompt_weight:
                    loss = loss + options.full_prompt_weight * paper_loss(self.passes, batch, Condition.POSITIVE)
                return {"loss": loss}
        weights = LossWeights(options.cross_entropy_weight, options.probe_weight)
        return {"loss": frozen_loss(self.passes, batch, weights, self.teacher)}


class GistTrainer(Trainer):
    """A Trainer that saves and restores only trained tensors; those in `LEARNED` have another learning rate."""

    data_hash: str
    """Hash of the run's rows, which every save holds."""
    model: Objective
    lr_scheduler: Any

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            options = self.model.options
            trained = self.model.trainable()
            learned = [trained.pop(name) for name in LEARNED if name in trained]
            groups = [
                {"params": list(trained.values()), "lr": options.learning_rate},
                {"params": learned, "lr": options.gist_learning_rate},
            ]
            self.optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.0)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        return super().create_scheduler(self.model.options.steps, optimizer)

    def _get_train_sampler(self, train_dataset: Any = None) -> Draws:
        examples, options = self.train_dataset, self.model.options
        assert isinstance(examples, Examples)
        return Draws(examples.lengths(), options.batch_size * self.args.world_size, options.steps, options.seed)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        keep: bool = self.args.should_save
        weights = gather(self.model.trainable(), keep)
        if keep:
            save = Path(output_dir or str(self.args.output_dir))
            saves.write_weights(save, weights, self.model.tokens, self.data_hash)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        assert self.optimizer is not None
        start_moments(self.optimizer)  # Trainer's own method would write the whole model too, frozen weights included
        save_fsdp_optimizer(
            self.accelerator.state.fsdp_plugin, self.accelerator, self.optimizer, self.model, output_dir
        )
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Does nothing: `Objective.load` has read the save."""


def train(
    config: TrainConfig, callbacks: list[TrainerCallback] | None = None, tokenized: Tokenized | None = None
) -> Path:
    """Run a recipe to its end, from an earlier run's last save if there is one. Returns the checkpoint's folder.

    callbacks: run in the main process only. tokenized: the recipe's rows if they are tokenised already. All processes
    of a launch must call; the caller destroys the process group (`torch.distributed.destroy_process_group`) after its
    last run. Raises `InputError`, `DataError` or `ModelError`. The finished run's figures are in
    `OUTPUT/training.json`.
    """
    output = Path(config.output)
    run = output / "run"
    arguments = _arguments(config, run)
    check_launch()
    with arguments.main_process_first(local=False):
        saves.check_same_run(config, run, arguments.world_size)
        save = saves.last_save(run)
    rows = tokenized or Texts.read(config)
    if save is not None:
        saves.check_same_data(save, rows.data_hash)
    keep_freed_memory()
    torch.set_float32_matmul_precision(config.matmul_precision)
    if config.threads:
        torch.set_num_threads(config.threads)
    checkpoint = create_checkpoint(config)
    tokens = rows if isinstance(rows, Tokenized) else rows.tokenize(config, checkpoint.prompts)
    tokens.check(config.batch_size * arguments.world_size)
    objective = Objective(checkpoint, config)
    if save is not None:
        objective.load(save)  # before FSDP shards the weights; DeepSpeed goes on from weights of its own
    measure = Validation(checkpoint, tokens.validation, config)
    trainer = GistTrainer(
        model=objective,
        args=arguments,
        train_dataset=tokens.training,
        data_collator=Collator(checkpoint.placement, config.k, config.seed, nested=not checkpoint.architecture.encodes),
        callbacks=[measure, *(callbacks or [] if arguments.should_save else [])],
    )
    trainer.data_hash = tokens.data_hash
    trainer.remove_callback(PrinterCallback)
    if save is not None and saves.step_of(save) >= config.steps:
        trainer.state = TrainerState.load_from_json(str(save / saves.STATE))  # only the end was missing
    else:
        trainer.train(resume_from_checkpoint=None if save is None else str(save))
    _finish(trainer, measure, tokens.left_out)
    trainer.accelerator.wait_for_everyone()
    return output


def _arguments(config: TrainConfig, run: Path) -> TrainingArguments:
    on_cpu = config.device == "cpu" or not torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(run),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(config.warmup * config.steps)),
        remove_unused_columns=False,
        dataloader_drop_last=True,
        logging_steps=1,
        save_steps=config.save_every,
        save_total_limit=2,
        seed=config.seed,
        use_cpu=on_cpu,
        dataloader_num_workers=0 if on_cpu else 2,  # batches are made while the accelerator works
        disable_tqdm=True,
        report_to=[],
    )


def _finish(trainer: GistTrainer, measure: Validation, left_out: int) -> None:
    """Write the checkpoint and the run's figures, in the main process; all processes must call.

    Raises `ModelError` if a frozen base has changed.
    """
    objective, config = trainer.model, trainer.model.options
    unchanged = None if config.recipe == Recipe.PAPER else measure.base_unchanged()
    if unchanged is False:
        raise ModelError(
            f"the weights of {config.base} changed during a frozen run; nothing was written to {config.output} but "
            "the run's saves"
        )
    if not trainer.args.should_save:
        return
    if is_sharded():
        trained = objective.checkpoint.config
        objective = Objective(create_checkpoint(config), config)
        if objective.checkpoint.config != trained:
            raise ModelError(
                f"{config.start or config.base} is not what it was when the run began, and the checkpoint is written "
                f"from it; put it back and run the same command again. Nothing was written to {config.output} but the "
                "run's saves"
            )
        objective.load(saves.save_after(Path(config.output) / "run", trainer.state.global_step))  # a run ends with one
    figures = {
        "config": config.to_dict(),
        "processes": trainer.args.world_size,
        "tokens": objective.tokens,
        "rows_left_out": left_out,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "validation": measure.history,
        "base_unchanged": unchanged,
    }
    if config.lora_rank is None:
        nn.Module.to(objective.checkpoint.reader, objective.base_dtype)
    objective.checkpoint.save_pretrained(config.output)
    write_atomically(Path(config.output) / "training.json", (json.dumps(figures, indent=1) + "\n").encode())


def keep_freed_memory() -> None:
    """Let glibc keep large buffers for reuse: returning them to the system and back costs a fifth of a step's time."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3
        for option, value in ((mmap_threshold, 1 << 30), (trim_threshold, (1 << 31) - 1), (top_pad, 1 << 28)):
            libc.mallopt(option, value)
