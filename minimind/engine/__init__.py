"""What every stage trains by: the loop, DeepSpeed, clipping, checkpoints and a run's figures. It
knows no objective: a stage brings the loss (minimind.engine.stage), and a run puts all together
(minimind.run)."""
