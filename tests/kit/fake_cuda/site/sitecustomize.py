"""Imported by every Python below a test that puts this folder on PYTHONPATH: a worker has a GPU's memory (`fake_cuda`)."""

import os
import sys

if "memsup.worker" in sys.orig_argv and "FAKE_CUDA" in os.environ:
    from kit import fake_cuda

    fake_cuda.install_from_environment()
