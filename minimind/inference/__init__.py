"""From a prompt to text: sampling, the batch engine with its scheduler, answers held to a form,
and the parts of an answer. It holds no connection and no conversation, which minimind.serving and
minimind.chat do."""
