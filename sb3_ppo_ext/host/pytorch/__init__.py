"""Assumptions about PyTorch, from 2.10 on, beyond its documented interface; tests/host/test_pytorch.py tests each."""
