"""What is written down of a run and read again: ledger, status, history, black box, and what they say after a death."""
