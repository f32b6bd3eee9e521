"""Trains every stage: the loop, DeepSpeed, clipping, checkpoints and a run's figures. It knows no
objective: a stage brings the loss (minimind.engine.stage), and minimind.run puts all together."""
