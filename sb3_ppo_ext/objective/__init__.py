"""What is minimised and measured: pure functions of tensors, which import nothing else of this package."""
