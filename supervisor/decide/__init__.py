"""What memsup decides. Pure: readings, settings and events in; stances, actions and verdicts out; `now` is an argument.

Nothing here imports what reads, writes, waits or draws lots, also indirectly (`make boundaries`). `run/` is the life of a run;
beside it are the ladder, heat, GPU memory, tiers and the estimate of a model.
"""
