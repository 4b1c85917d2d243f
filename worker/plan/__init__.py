"""How a step is cut: which rows, into which micro-batches, and what they take of memory and time."""
