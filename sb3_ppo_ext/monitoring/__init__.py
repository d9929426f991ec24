"""The logs of a run, and the warnings and errors about it."""
