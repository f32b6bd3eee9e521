"""Sends a run's figures to TensorBoard, Weights & Biases and the like. A monitor receives numbers
and knows neither the loop nor a stage, so the package imports neither."""
