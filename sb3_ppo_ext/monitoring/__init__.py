"""What a run leaves in its logs, and the warnings and errors about it."""
