"""Lists the keys that a DeepSpeed JSON may have.

At the top level, and in the sections that it reads key by key, DeepSpeed silently accepts unknown
keys; here they are errors. For the other sections DeepSpeed has schemas, which refuse unknown keys
when the engine starts.
"""

from __future__ import annotations

from typing import Any

from minimind.config.deepspeed_optimizers import check_optimizer
from minimind.config.deepspeed_schedulers import check_scheduler
from minimind.config.monitors import MONITOR_KEYS, check_monitor
from minimind.config.spelling import did_you_mean
from minimind.errors import ConfigError

SECTIONS: dict[str, frozenset[str] | None] = {
    "aio": frozenset(
        {
            "block_size",
            "intra_op_parallelism",
            "overlap_events",
            "queue_depth",
            "single_submit",
            "use_gds",
        }
    ),
    "bf16": None,
    "checkpoint": frozenset(
        {
            "checkpoint_serialization",
            "load_universal",
            "parallel_write",
            "tag_validation",
            "use_node_local_storage",
            "writer",
        }
    ),
    "comms_logger": None,
    "compile": None,
    "data_types": frozenset(
        {"buffer_dtype", "grad_accum_dtype", "keep_in_fp32_modules", "param_dtype"}
    ),
    "flops_profiler": frozenset(
        {
            "detailed",
            "enabled",
            "module_depth",
            "output_file",
            "profile_step",
            "recompute_fwd_factor",
            "top_modules",
        }
    ),
    "fp16": None,
    "optimizer": frozenset({"legacy_fusion", "params", "type"}),
    "scheduler": frozenset({"params", "type"}),
    "timers": frozenset({"throughput"}),
    "torch_autocast": frozenset({"dtype", "enabled", "lower_precision_safe_modules"}),
    "zero_optimization": None,
}
"""The sections, except the monitors', with their keys; None where DeepSpeed has a schema."""
_VALUES = frozenset(
    {
        "communication_data_type",
        "disable_allgather",
        "disable_python_gc",
        "dump_state",
        "gradient_accumulation_steps",
        "gradient_allreduce_op",
        "gradient_clipping",
        "gradient_predivide_factor",
        "log_level",
        "memory_breakdown",
        "prescale_gradients",
        "seq_parallel_communication_data_type",
        "steps_per_print",
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "wall_clock_breakdown",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
    }
)
KNOWN_KEYS = _VALUES | SECTIONS.keys() | MONITOR_KEYS.keys()
REFUSED_KEYS = {
    "activation_checkpointing": "it would change nothing; --set activation_checkpointing=true does",
    "amp": "use bf16 or fp16",
    "autotuning": "DeepSpeed's autotuner ends the run without training",
    "bfloat16": "spell it bf16",
    "compression_training": "training is in bf16, fp16 or fp32",
    "curriculum_learning": "MiniMind has its own data loader",
    "data_efficiency": "MiniMind has its own data loader",
    "dataloader_drop_last": "MiniMind has its own data loader",
    "elasticity": "it changes the batch size during a run; give train_batch_size",
    "expert_parallel": "the models are not split over ranks",
    "hybrid_engine": "MiniMind generates with its own engine",
    "managed_gradient_accumulation": "the loop counts the micro-batches itself",
    "nebula": "MiniMind writes its own checkpoints",
    "pipeline": "there are no pipeline stages",
    "sparse_gradients": "the embedding's gradient is dense",
    "tensor_parallel": "the models are not split over ranks",
    "weight_quantization": "training is in bf16, fp16 or fp32",
}


def check_keys(values: dict[str, Any], origin: str) -> None:
    """Raises ConfigError for a key that DeepSpeed does not know, a key that has no effect here, and
    a section that is not an object. `origin` names the JSON in messages."""
    for key, value in values.items():
        if key in REFUSED_KEYS:
            raise ConfigError(f"{origin}: {key} cannot be used here: {REFUSED_KEYS[key]}")
        if key not in KNOWN_KEYS:
            guess = did_you_mean(key, KNOWN_KEYS)
            raise ConfigError(f"{origin}: DeepSpeed knows no key {key!r}{guess}")
        if key in _VALUES:
            continue
        if not isinstance(value, dict):
            raise ConfigError(f"{origin}: {key} is {value!r}; it must be an object")
        if key in MONITOR_KEYS:
            check_monitor(key, value, origin)
            continue
        known = SECTIONS[key] or value.keys()
        if unknown := sorted(value.keys() - known):
            raise ConfigError(
                f"{origin}: {key} knows no key {unknown[0]!r}, but {', '.join(sorted(known))}"
                f"{did_you_mean(unknown[0], known)}"
            )
    for section, check in (("optimizer", check_optimizer), ("scheduler", check_scheduler)):
        if section not in values:
            continue
        if not isinstance(values[section].get("type"), str):
            raise ConfigError(f"{origin}: {section} needs a type, a name")
        if not isinstance(values[section].get("params", {}), dict):
            raise ConfigError(f"{origin}: {section}.params must be an object")
        check(values[section], origin)
    for section in {"bf16", "fp16"} & values.keys():
        enabled = values[section].get("enabled", False)
        if enabled not in ("auto", True, False):
            raise ConfigError(f'{origin}: {section}.enabled is {enabled!r}: true, false or "auto"')
    stage = values.get("zero_optimization", {}).get("stage", 0)
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        raise ConfigError(f"{origin}: zero_optimization.stage is {stage!r}; it must be 0 to 3")
    if values.get("gradient_allreduce_op", "mean") != "mean":
        raise ConfigError(
            f"{origin}: gradient_allreduce_op is {values['gradient_allreduce_op']!r}; the loop "
            "divides by the targets of all ranks and needs 'mean'"
        )
