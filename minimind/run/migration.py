"""Maps the flags of the original MiniMind to their replacements here (docs/migration.md)."""

from __future__ import annotations

RENAMED = {
    "data_path": "data",
    "data_dir": "data",
    "max_seq_len": "seq_len",
    "max_length": "seq_len",
    "grad_clip": "gradient_clipping",
    "log_interval": "log_every",
    "save_interval": "save_every",
    "warmup_iters": "warmup_steps",
    "out_dir": "output_dir",
    "save_dir": "output_dir",
    "tokenizer_path": "tokenizer",
    "from_student_weight": "from_checkpoint",
    "from_teacher_weight": "teacher",
    "from_weight": "from_checkpoint",
    "student_hidden_size": "hidden_size",
    "student_num_layers": "num_hidden_layers",
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "max_gen_len": "max_new_tokens",
    "reasoning": "thinking",
    "clip_epsilon": "epsilon",
    "vf_coef": "value_coef",
    "ppo_update_iters": "inner_epochs",
    "early_stop_kl": "kl_stop",
    "lam": "gae_lambda",
    "cliprange_value": "value_epsilon",
    "max_total_len": "seq_len",
    "debug_interval": "sample_every",
    "report_to": "monitor",
}
"""For each name in the original or in transformers, the flag, recipe option or model field that
does the same here."""

EXPLAINED = {
    "accumulation_steps": "follows from --batch_size, the rows of a whole step over all GPUs, and "
    "--set micro_batch_size=N, the rows of one forward on one GPU",
    "save_weight": "each run has a folder of its own: --output_dir FOLDER",
    "lora_name": "each adapter has a folder of its own: --output_dir FOLDER",
    "from_resume": "--resume --output_dir FOLDER goes on with the run in that folder",
    "use_wandb": "--monitor swanlab (the original means SwanLab by it), or --monitor wandb for "
    "Weights & Biases",
    "wandb_project": "--set ds_config.swanlab.project=NAME or ds_config.wandb.project=NAME",
    "use_moe": "--model minimind3-moe or minimind2-moe, or --set num_experts=4 for any model",
    "student_use_moe": "--model minimind3-moe or minimind2-moe, or --set num_experts=4",
    "teacher_use_moe": "the teacher's folder says what it is: --set teacher=FOLDER",
    "teacher_hidden_size": "the teacher's folder says what it is: --set teacher=FOLDER",
    "teacher_num_layers": "the teacher's folder says what it is: --set teacher=FOLDER",
    "reward_model_path": "--set 'rewards={\"reward_model(folder=FOLDER)\": 1.0}'",
    "thinking_ratio": "--set thinking=true: the answer begins inside a thinking block",
    "rollout_engine": "not needed: answers come from the batch engine, with the policy's weights",
    "sglang_base_url": "not needed: answers come from the batch engine",
    "sglang_model_path": "not needed: answers come from the batch engine",
    "sglang_shared_path": "not needed: answers come from the batch engine",
    "mini_batch_size": "--set num_minibatches=N: as many updates, with a part of the answers each",
    "debug_mode": "not needed: --set sample_every=N writes answers to samples.jsonl",
    "debug_log_ratio": "not needed: metrics.csv says how far sampler and trainer differ",
    "num_workers": "not needed: rows are read ahead in the background",
    "dtype": "bf16 where the device has it; --set ds_config.bf16.enabled=false and "
    "--ds_config zero2_fp16.json choose otherwise",
    "device": "all GPUs that the launcher gives, else the CPU; the environment variable "
    "CUDA_VISIBLE_DEVICES chooses",
    "ddp": "deepspeed launch/train.py starts a rank on every GPU",
    "use_compile": "not needed: the kernels are compiled already",
}
"""For each name of the original without a single replacement, what to do instead."""
