"""Trains every stage: the loop, DeepSpeed, gradient clipping, checkpoints and a run's metrics. It
contains no objective: a stage brings its loss (minimind.engine.stage), and minimind.run joins stage
and engine."""
