"""Where a run's figures go besides its folder: TensorBoard, Weights & Biases and the like."""
