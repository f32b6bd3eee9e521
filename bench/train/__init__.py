"""How quick is a training step, what does it hold, and how fast does it learn? Rows of every stage,
ours and the rivals', take steps in turns."""
