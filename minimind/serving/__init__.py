"""An OpenAI-compatible server over the batch engine."""
