"""Runs the steps that one JSON file names, from text to a chat model: training a tokenizer and
models, evaluating and converting them, and a report. It checks the whole file first, skips steps
whose inputs have not changed, and starts each step as the command that a user would type. It
contains no training, evaluation or conversion of its own."""
