"""GPUs: what their driver says about them, and what follows for the worker.

`probe.py` is a child process and the only one that loads NVIDIA's library; `client.py` is the supervisor's end, `frames.py`
what passes between the two. `thresholds.py` (temperature limits from a device's answers), `devices.py` (from answers to
readings; which GPUs are the worker's) and `vram.py` (pressure on GPU memory) are pure. How heat is answered is
`../heat.py`. Another vendor's probe would be another child that answers the same frames; AMD and Apple are not claimed.
"""
