"""GPUs: what their driver says about them, and what follows for the worker.

`probe.py` is a child process and the only one that loads NVIDIA's library; `client.py` is the supervisor's end, `frames.py`
what passes between the two. `devices.py` makes readings of answers and knows which GPUs are the worker's; it is pure. What
follows from the readings is decided in `decide/`: `heat.py`, `thresholds.py`, `vram.py`. Another vendor's probe would be
another child that answers the same frames; AMD and Apple are not claimed.
"""
