"""How good a model is: perplexity, multiple choice, answers side by side and the tasks of
lm-evaluation-harness. It measures a model that is there; it trains none and compares no speed."""
