"""What do more ranks bring? One training run at each number of them, measured or predicted."""
