"""What the supervisor and the worker must agree on: messages, status, settings, paths, the run's record and the clock.

Nothing here decides, watches or trains, and nothing here imports torch, transformers or numpy.
"""
