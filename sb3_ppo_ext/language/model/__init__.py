"""Causal language models, their critics and references, and how they generate."""
