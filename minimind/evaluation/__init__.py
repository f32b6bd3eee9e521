"""How good a model is: perplexity, multiple choice, answers side by side."""
