"""Generates text from a prompt: sampling, the batch engine with its scheduler, answers constrained
to a form, and the parts of an answer. It holds no connection (minimind.serving) and no conversation
(minimind.chat)."""
