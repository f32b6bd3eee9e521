"""Configures MiniMind's mixture of experts for `transformers` (trust_remote_code=True)."""

from transformers.models.qwen3.configuration_qwen3 import Qwen3Config


class MiniMindMoeConfig(Qwen3Config):
    """Holds Qwen3's fields, those of the experts under Qwen3-MoE's names, and in `minimind` the
    fields that only MiniMind has."""

    model_type = "minimind_moe"
