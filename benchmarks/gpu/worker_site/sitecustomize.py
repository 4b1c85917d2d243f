"""Imported by every Python below a part of the proof that puts this folder on PYTHONPATH; acts in memsup's worker alone.

DETERMINISTIC=1: torch takes the kernels that give the same bits each time. CROWD="PLACE@STEP …", PLACE one of forward,
backward, optimizer, evaluation: there, once in the run's life, everything that torch may still have is taken, really, so that
its next allocation fails by itself; it is given back when the worker gives its cache back, as it does after it ran out.
CROWD_LOG has one line of JSON for each time it was taken and given back. PROFILE=FIRST:LAST: the steps between are looked at by
torch's profiler, and PROFILE_INTO has what was seen.
"""

import os
import sys

if "memsup.worker" in sys.orig_argv:
    if os.environ.get("DETERMINISTIC") == "1":
        import torch

        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cuda.enable_flash_sdp(False)  # what is left of attention are plain matrix products
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False)
    if "CROWD" in os.environ:
        import crowd

        crowd.come()
    if "PROFILE" in os.environ:
        import profiled

        profiled.begin()
