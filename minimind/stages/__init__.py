"""Holds the training objectives by the name that --stage takes.

Rollouts, their rewards and reference models stand beside the objectives that use them. The loop,
DeepSpeed and checkpoints are in minimind.engine.
"""

from typing import Any

from minimind.engine.stage import Stage
from minimind.stages.distill import Distill
from minimind.stages.dpo import DPO
from minimind.stages.grpo import GRPO
from minimind.stages.kto import KTO
from minimind.stages.lora import Lora
from minimind.stages.ppo import PPO
from minimind.stages.pretrain import Pretrain
from minimind.stages.sft import SFT

STAGES: dict[str, type[Stage[Any, Any]]] = {
    stage.name: stage for stage in (Pretrain, SFT, Lora, DPO, KTO, Distill, GRPO, PPO)
}
