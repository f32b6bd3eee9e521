"""The training objectives, by the name that --stage takes."""

from minimind.stages.pretrain import Pretrain
from minimind.stages.sft import SFT

STAGES = {stage.name: stage for stage in (Pretrain, SFT)}
