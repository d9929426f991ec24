"""Compiled gradients and decoders of language models."""
