"""Where a run's figures go besides its folder: TensorBoard, Weights & Biases and the like. A
monitor is told of numbers, and knows neither the loop nor a stage: so it lies below them."""
