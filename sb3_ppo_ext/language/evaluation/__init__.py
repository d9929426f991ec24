"""Evaluation of language models on held-out prompts."""
