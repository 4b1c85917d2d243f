"""`memsup drill`: rehearses a bad night with tiny runs of its own."""
