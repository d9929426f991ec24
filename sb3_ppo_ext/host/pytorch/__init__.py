"""What is assumed of PyTorch 2.10 and later beyond its documented interface; tests/host/test_pytorch.py tests it."""
