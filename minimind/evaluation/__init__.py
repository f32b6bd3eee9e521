"""Measures how good a model is: perplexity, multiple choice, answers side by side and the tasks of
lm-evaluation-harness. It measures finished models; it trains none and compares no speed."""
