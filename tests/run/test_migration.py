"""The original MiniMind's flags: each is one here, or is explained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from minimind.run.arguments import parse_arguments
from minimind.run.migration import EXPLAINED, RENAMED
from minimind.run.unknown_names import explain, spell_flag

ROOT = Path(__file__).resolve().parents[2]


def test_the_originals_flags_get_their_names_here_all_at_once(fails: Callable[..., str]):
    said = fails(
        *("--batch_size", "32", "--data_path", "x.jsonl", "--hidden_size", "512"),
        *("--use_moe", "1", "--grad_clip", "1.0", "--use_wandb", "--save_weight", "pretrain"),
    )
    assert "unknown flags:\n  --data_path is --data x.jsonl here\n" in said
    for line in (
        "--hidden_size is --set hidden_size=512 here",
        "--use_moe: --model minimind3-moe or minimind2-moe",
        "--grad_clip is --set gradient_clipping=1.0 here",
        "--use_wandb: --monitor swanlab",
        "--save_weight: each run has a folder of its own: --output_dir FOLDER",
    ):
        assert f"  {line}" in said
    assert "--batch_size" not in said


ORIGINAL = (
    "save_dir save_weight batch_size device dtype num_workers accumulation_steps grad_clip "
    "log_interval save_interval hidden_size num_hidden_layers max_seq_len use_moe data_path "
    "from_weight from_resume use_wandb wandb_project use_compile lora_name teacher_hidden_size "
    "teacher_num_layers teacher_use_moe student_hidden_size student_num_layers student_use_moe "
    "from_teacher_weight from_student_weight alpha temperature beta num_generations loss_type "
    "epsilon epsilon_high max_gen_len max_total_len thinking_ratio reward_model_path "
    "rollout_engine sglang_base_url sglang_model_path sglang_shared_path debug_mode "
    "debug_interval debug_log_ratio clip_epsilon vf_coef kl_coef gamma lam cliprange_value "
    "ppo_update_iters early_stop_kl mini_batch_size critic_learning_rate"
)
"""The flags of its trainer scripts on 2026-08-21 (commit d65ef2c), but for epochs and
learning_rate, which are flags here."""


@pytest.mark.parametrize("name", sorted({*ORIGINAL.split(), *RENAMED, *EXPLAINED}))
def test_each_flag_of_the_original_is_one_here_or_is_explained(name: str):
    try:
        parse_arguments(["--stage", "distill", f"--{name}", "1"])
    except SystemExit:
        said = explain(name, "1", "distill", spell_flag)
        assert said.startswith((" is --", " is an option of --stage", ": "))
    else:
        assert name == "batch_size"


def test_the_migration_page_names_each_flag_of_the_original():
    page = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
    for name in {*ORIGINAL.split(), *RENAMED, *EXPLAINED}:
        assert f"`--{name}`" in page, name
