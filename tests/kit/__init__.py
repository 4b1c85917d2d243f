"""What tests and benchmarks share: real processes, supervisors, kills, limits, disks and devices to try memsup on.

Which of them is for what is in tests/README.md, "What there is to test with".
"""

from pathlib import Path

KIT = Path(__file__).parent
TESTS = KIT.parent
ROOT = TESTS.parent
FAULTS = KIT / "faults"
"""In `PYTHONPATH`, its `sitecustomize` spoils a child's day; which fault, the environment says."""
