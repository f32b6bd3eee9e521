"""The training objectives, by the name that --stage takes."""

from minimind.stages.pretrain import Pretrain

STAGES = {stage.name: stage for stage in (Pretrain,)}
