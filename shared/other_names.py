"""What other trainers call things, with memsup's name for each and what to do. Pure; read only to word a refusal.

Covers transformers' `TrainingArguments` as people know them (its example scripts' own arguments as well), and what is usually
tried for memsup's settings. `loading.py` asks here before it guesses by likeness, which is wrong more often than not.
"""

from __future__ import annotations

_BATCH = "the samples of one optimizer step, whatever the memory does: per-device batch × accumulation"
_NO_CUT = "memsup cuts a step by itself so that it fits, and moves to the fastest cut: nothing is to be set for it"
_AMP = 'write "bf16" or "fp16" there, or leave it out: memsup then chooses by the device. Weights stay float32'
_EVALUATES = 'a number of steps, or "epoch" for the end of each pass, as it is where nothing is set'
_KEEPS = 'write "best": the model then has the weights of the best evaluation. Left out, it has the last ones'
_METRIC = "the best result is that with the highest accuracy, or, where the task has none, with the least evaluation loss"
_SAVES = "a duration such as 10m, not steps; left out, memsup weighs what a save costs against what a death would"
_MODEL_KEPT = "the model lies in the run's own folder; memsup status says where"
_LOGS = "progress is in memsup status, memsup report and memsup logs"
_LOADERS = "memsup reads the data without loader processes, which are what usually fills the memory"
_ONE = "memsup trains on one device; several are not used"
_ADAMW = "memsup's optimizer is AdamW, with torch's own values"
_LINEAR = "the learning rate rises in training.warmup and then falls to nothing in a straight line"

_NAMES: dict[str, tuple[str | None, str]] = {
    # What is trained on what
    "model_name_or_path": ("task.model", ""),
    "model_name": ("task.model", ""),
    "model_path": ("task.model", ""),
    "model": ("task.model", ""),
    "tokenizer_name": (None, "the tokenizer is the model's own"),
    "dataset": ("task.train", "a file, a pattern or a folder"),
    "dataset_name": ("task.train", "a file, a pattern or a folder; memsup fetches no data from a hub"),
    "data": ("task.train", "a file, a pattern or a folder"),
    "train_file": ("task.train", ""),
    "train_data": ("task.train", ""),
    "validation_file": ("task.eval", ""),
    "valid": ("task.eval", ""),
    "validation": ("task.eval", ""),
    "test_file": ("task.eval", ""),
    "streaming": ("task.stream", "with training.max_steps and task.eval"),
    "buffer_size": ("task.shuffle_buffer", "with task.stream"),
    "text_column": ("task.text", ""),
    "text_column_name": ("task.text", ""),
    "label_column": ("task.label", ""),
    "label_column_name": ("task.label", ""),
    "label_names": ("task.labels", ""),
    "num_labels": (None, "the labels are counted in the data; task.labels names them where not all are to count"),
    # How
    "batch_size": ("training.effective_batch", _BATCH),
    "batch": ("training.effective_batch", _BATCH),
    "train_batch_size": ("training.effective_batch", _BATCH),
    "per_device_train_batch_size": ("training.effective_batch", _BATCH),
    "gradient_accumulation_steps": ("training.effective_batch", _BATCH),
    "accumulate_grad_batches": ("training.effective_batch", _BATCH),
    "per_device_eval_batch_size": (None, _NO_CUT),
    "auto_find_batch_size": (None, _NO_CUT),
    "eval_accumulation_steps": (None, _NO_CUT),
    "torch_empty_cache_steps": (None, _NO_CUT),
    "num_train_epochs": ("training.epochs", ""),
    "num_epochs": ("training.epochs", ""),
    "max_epochs": ("training.epochs", ""),
    "max_steps": ("training.max_steps", ""),
    "max_seq_length": ("training.max_length", ""),
    "max_seq_len": ("training.max_length", ""),
    "max_len": ("training.max_length", ""),
    "max_length": ("training.max_length", ""),
    "learning_rate": ("training.learning_rate", ""),
    "lr": ("training.learning_rate", ""),
    "warmup_ratio": ("training.warmup", "the share of all steps"),
    "warmup_steps": ("training.warmup", "the share of all steps, such as 0.06"),
    "lr_scheduler_type": (None, _LINEAR),
    "lr_scheduler_kwargs": (None, _LINEAR),
    "weight_decay": ("training.weight_decay", ""),
    "max_grad_norm": ("training.clip_norm", "off for no clipping"),
    "gradient_clip_val": ("training.clip_norm", "off for no clipping"),
    "optim": (None, _ADAMW),
    "optim_args": (None, _ADAMW),
    "adam_beta1": (None, _ADAMW),
    "adam_beta2": (None, _ADAMW),
    "adam_epsilon": (None, _ADAMW),
    "label_smoothing_factor": (None, "memsup's loss is the model's own, without smoothing"),
    "seed": ("training.seed", ""),
    "data_seed": ("training.seed", "one seed is for everything"),
    "full_determinism": (None, "a run on a CPU has the same bits each time, with training.threads and training.tune = false"),
    "group_by_length": (None, "a step is cut by length anyway, and sees the rows it would have seen"),
    "train_sampling_strategy": (None, "a step is cut by length anyway, and sees the rows it would have seen"),
    # On what, and with what
    "fp16": ("training.amp", _AMP),
    "bf16": ("training.amp", _AMP),
    "use_amp": ("training.amp", _AMP),
    "amp": ("training.amp", _AMP),
    "precision": ("training.amp", _AMP),
    "mixed_precision": ("training.amp", _AMP),
    "half_precision_backend": ("training.amp", _AMP),
    "tf32": (None, "products are TF32 on a GPU that has it wherever training.amp leaves float32, and float32 with amp off"),
    "use_cpu": ("training.device", 'write "cpu"'),
    "no_cuda": ("training.device", 'write "cpu"'),
    "gpu": (
        "training.device",
        "cpu, cuda or cuda:N; limits of a GPU are limits.vram, limits.gpu_temperature_c, limits.power_w",
    ),
    "device": ("training.device", ""),
    "activation_checkpointing": ("training.gradient_checkpointing", ""),
    "gradient_checkpointing": ("training.gradient_checkpointing", ""),
    "gradient_checkpointing_kwargs": ("training.gradient_checkpointing", "true or false is all there is to it"),
    "torch_compile": (None, "models are computed as they are, not compiled"),
    "dataloader_num_workers": (None, _LOADERS),
    "num_workers": (None, _LOADERS),
    "dataloader_pin_memory": (None, _LOADERS),
    "dataloader_prefetch_factor": (None, _LOADERS),
    "dataloader_persistent_workers": (None, _LOADERS),
    "dataloader_drop_last": (None, "every row is used: the last step of a pass may be smaller, and is weighted as such"),
    "local_rank": (None, _ONE),
    "deepspeed": (None, _ONE),
    "fsdp": (None, _ONE),
    "ddp_backend": (None, _ONE),
    # Saving, evaluating, telling
    "output_dir": (None, _MODEL_KEPT),
    "overwrite_output_dir": (None, "a run that exists goes on; memsup start --fresh begins anew, and keeps the earlier one"),
    "run_name": (None, "name the run with --run NAME"),
    "save_strategy": ("checkpoint.every", _SAVES),
    "save_steps": ("checkpoint.every", _SAVES),
    "save_every": ("checkpoint.every", _SAVES),
    "save_total_limit": ("checkpoint.keep", "2 or more"),
    "resume_from_checkpoint": ("checkpoint.resume_from", "a run of memsup's own goes on by itself: memsup start"),
    "eval_strategy": ("training.evaluate_every", _EVALUATES),
    "evaluation_strategy": ("training.evaluate_every", _EVALUATES),
    "eval_steps": ("training.evaluate_every", _EVALUATES),
    "eval_every": ("training.evaluate_every", _EVALUATES),
    "load_best_model_at_end": ("training.keep", _KEEPS),
    "save_best_model": ("training.keep", _KEEPS),
    "metric_for_best_model": (None, _METRIC),
    "greater_is_better": (None, _METRIC),
    "early_stopping_patience": ("training.patience", "the evaluations in a row without a better result after which it ends"),
    "early_stopping": ("training.patience", "the evaluations in a row without a better result after which it ends"),
    "early_stopping_threshold": (None, f"any better result counts; {_METRIC}"),
    "do_train": (None, "it always trains"),
    "do_eval": ("task.eval", "it always evaluates, after each pass at the latest: training.evaluate_every"),
    "logging_steps": (None, _LOGS),
    "logging_strategy": (None, _LOGS),
    "logging_dir": ("training.report_to", "what it writes lies in the run's own folder"),
    "report_to": ("training.report_to", "tensorboard, trackio, or both with a comma between"),
    "disable_tqdm": (None, _LOGS),
    "push_to_hub": (None, f"nothing is sent anywhere; {_MODEL_KEPT}"),
    # Limits
    "memory": ("limits.ram", "a size such as 8GiB, or a share such as 50%"),
    "max_memory": ("limits.ram", "a size such as 8GiB, or a share such as 50%"),
    "gpu_memory": ("limits.vram", "a size such as 6GiB, or a share such as 80%"),
    "temperature": ("limits.gpu_temperature_c", "and limits.cpu_temperature_c"),
}


def setting_for(key: str) -> str | None:
    """The setting of memsup that somebody else calls `key`. Returns None where there is none, or it is not known."""
    found = _found(key)
    return None if found is None else found[0]


def told(key: str) -> str | None:
    """What memsup has for a setting that somebody else calls `key`, as a sentence. Returns None where that is not known."""
    found = _found(key)
    if found is None:
        return None
    setting, what = found
    if setting is None:
        return f"memsup has no such setting: {what}."
    return f"In memsup it is {setting}" + (f": {what}." if what else ".")


def _found(key: str) -> tuple[str | None, str] | None:
    return _NAMES.get(key.rpartition(".")[2].lstrip("-").replace("-", "_").lower())
