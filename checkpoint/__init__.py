"""Durable training state: how it is written, checked, kept and thrown away. Knows neither process.

Pure: `manifest.py` (what a checkpoint consists of), `header.py` (the safetensors format), `retention.py`, `room.py`. On disk:
`durable.py` (one file, written, flushed and read back), `tensors.py` (many tensors as such files and back again), `reading.py`
(checks a folder without trusting it), `draft.py` and `store.py` (join them). The format and the reasons: docs/checkpoints.md.
When the next one is due is in `program/cadence.py`.
"""
