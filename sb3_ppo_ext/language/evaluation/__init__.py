"""Evaluation on held-out prompts, and tasks to evaluate on."""
