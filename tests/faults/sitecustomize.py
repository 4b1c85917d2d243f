"""Imported by every Python below a test that puts this folder on PYTHONPATH: makes a real worker fail as the environment says.

FAULT_ROW=N: whatever step has row N of the training rows fails in the middle of it, each time.
"""

import os
import sys

if "memsup.worker" in sys.orig_argv and (fault_row := os.environ.get("FAULT_ROW")):
    from memsup.worker import batches

    right = batches.cut

    def cut(rows, lengths, micro_tokens):  # type: ignore[no-untyped-def]
        if int(fault_row) in rows:
            raise IndexError("index out of range in self")
        return right(rows, lengths, micro_tokens)

    batches.cut = cut
