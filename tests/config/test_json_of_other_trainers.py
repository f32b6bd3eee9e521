"""DeepSpeed JSONs of other trainers, as people bring them: every "auto" is filled, or refused in
words of our own."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from resolved_json import Resolve

from minimind.config.deepspeed_json import Hardware, precision, with_total_steps
from minimind.config.deepspeed_schedulers import check_length
from minimind.errors import ConfigError

GPU = Hardware("gpu", 2, "bf16")
BATCHES = {
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "steps_per_print": 2000,
    "wall_clock_breakdown": False,
}
FP16 = {"loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16, "hysteresis": 2}
ADAMW = {
    "type": "AdamW",
    "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
}
WARM = {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"}
DECAY = {"type": "WarmupDecayLR", "params": {**WARM, "total_num_steps": "auto"}}
ZERO2 = {
    "stage": 2,
    "offload_optimizer": {"device": "none", "pin_memory": True},
    "allgather_partitions": True,
    "allgather_bucket_size": 2e8,
    "overlap_comm": True,
    "reduce_scatter": True,
    "reduce_bucket_size": "auto",
    "contiguous_gradients": True,
}
ZERO3 = {
    "stage": 3,
    "overlap_comm": True,
    "contiguous_gradients": True,
    "sub_group_size": 1e9,
    "reduce_bucket_size": "auto",
    "stage3_prefetch_bucket_size": "auto",
    "stage3_param_persistence_threshold": "auto",
    "stage3_max_live_parameters": 1e9,
    "stage3_max_reuse_distance": 1e9,
    "stage3_gather_16bit_weights_on_model_save": "auto",
}
FILES: dict[str, dict[str, Any]] = {
    "ZeRO 2, linear decay": {
        "bf16": {"enabled": "auto"},
        "optimizer": ADAMW,
        "scheduler": DECAY,
        "zero_optimization": ZERO2,
    },
    "both precisions": {
        "fp16": {"enabled": "auto", "auto_cast": False, "min_loss_scale": 1, **FP16},
        "bf16": {"enabled": "auto"},
        "optimizer": ADAMW,
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": DECAY["params"] | {"warmup_type": "linear"},
        },
        "zero_optimization": {"stage": 1, "overlap_comm": True},
    },
    "ZeRO 3, no optimizer": {
        "bf16": {"enabled": "auto"},
        "scheduler": {"type": "WarmupLR", "params": WARM},
        "zero_optimization": ZERO3,
    },
    "everything auto": {
        "bf16": {"enabled": "auto"},
        "optimizer": {"type": "AdamW", "params": {**ADAMW["params"], "torch_adam": True}},
        "zero_optimization": ZERO3
        | {
            "offload_optimizer": {"device": "auto", "pin_memory": "auto"},
            "offload_param": {"device": "auto", "pin_memory": "auto"},
        },
        "zero_allow_untested_optimizer": True,
    },
    "cosine": {
        "bf16": {"enabled": "auto"},
        "optimizer": ADAMW,
        "scheduler": {
            "type": "WarmupCosineLR",
            "params": {
                "total_num_steps": "auto",
                "warmup_num_steps": "auto",
                "warmup_min_ratio": "auto",
                "cos_min_ratio": "auto",
            },
        },
        "zero_optimization": ZERO2,
    },
}


@pytest.fixture
def filled(resolved: Resolve) -> Callable[..., dict[str, Any]]:
    """filled(values, **given) -> the JSON with BATCHES and `values`, resolved for two GPUs."""
    return lambda values, **given: resolved(BATCHES | values, hardware=GPU, **given)[0]


@pytest.mark.parametrize("name", FILES)
def test_every_auto_is_filled(
    filled: Callable[..., dict[str, Any]],
    deepspeed_config: Callable[[dict[str, Any]], Any],
    name: str,
    no_launcher: None,
):
    ds = with_total_steps(filled(FILES[name]), 300)
    assert '"auto"' not in json.dumps(ds)
    assert precision(ds) == "bf16"
    deepspeed_config({**ds, "train_batch_size": ds["train_batch_size"] // 2})
    if scheduler := ds.get("scheduler"):
        check_length(scheduler, 5e-4, 300)
        assert scheduler["params"].get("total_num_steps", 300) == 300
        assert scheduler["params"].get("warmup_max_lr", 5e-4) == 5e-4


def test_flags_reach_a_schedule_that_asks_for_them(filled: Callable[..., dict[str, Any]]):
    decay = FILES["ZeRO 2, linear decay"]
    ds = filled(decay, learning_rate=1e-3, warmup_steps=7, max_steps=90)
    assert ds["optimizer"]["params"]["lr"] == 1e-3
    assert ds["scheduler"]["params"] == {
        "warmup_min_lr": 0.0,
        "warmup_max_lr": 1e-3,
        "warmup_num_steps": 7,
        "total_num_steps": 90,
    }
    cosine = filled(FILES["cosine"], learning_rate=1e-3, min_lr_ratio=0.2, max_steps=90)
    assert cosine["scheduler"]["params"]["cos_min_ratio"] == 0.2
    with pytest.raises(ConfigError, match="which contradicts min_lr_ratio"):
        filled(decay, min_lr_ratio=0.2)
    fixed = {**decay, "scheduler": {"type": "WarmupLR", "params": {**WARM, "warmup_num_steps": 9}}}
    with pytest.raises(ConfigError, match="which contradicts warmup_steps"):
        filled(fixed, warmup_steps=7)


def test_steps_that_follow_from_the_data_are_filled_later(filled: Callable[..., dict[str, Any]]):
    ds = filled(FILES["ZeRO 2, linear decay"])
    assert ds["scheduler"]["params"]["total_num_steps"] == "auto"
    told = with_total_steps(ds, 55)
    assert told["scheduler"]["params"]["total_num_steps"] == 55
    assert with_total_steps(told, 66) is told


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"amp": {"enabled": "auto", "opt_level": "auto"}}, "amp cannot be used here"),
        ({"activation_checkpointing": {"partition_activations": False}}, "it would change nothing"),
        ({"scheduler": {"type": "StepLR", "params": {"step_size": "auto"}}}, "is not known here"),
        (
            {"scheduler": {"type": "WarmupDecayLR", "params": {"num_training_steps": "auto"}}},
            "knows no key 'num_training_steps'",
        ),
        ({"zero_optimization": {"stage": 2, "sub_group_size": "auto"}}, "is not known here"),
        ({"zero_optimization": {"stage": "auto"}}, "must be 0 to 3"),
    ],
)
def test_what_cannot_be_filled_is_refused_in_words(
    filled: Callable[..., dict[str, Any]], changes: dict[str, Any], words: str
):
    with pytest.raises(ConfigError, match=words):
        filled({**FILES["ZeRO 2, linear decay"], **changes})
