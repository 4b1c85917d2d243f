"""The parts of the proof. Each has PROMISES, and yields findings about them in that order."""
