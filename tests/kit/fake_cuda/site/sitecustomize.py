"""Imported by every Python below a test that puts this folder on PYTHONPATH: a worker has a GPU's memory (`fake_cuda`)."""

import os
import sys

words = sys.orig_argv
if {"memsup.worker", "memsup.worker.ranks"} & set(words) and "FAKE_CUDA" in os.environ:
    from kit import fake_cuda

    fake_cuda.install_from_environment(int(words[words.index("--rank") + 1]) if "--rank" in words else 0)
