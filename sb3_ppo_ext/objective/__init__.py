"""Losses and the statistics of a minibatch: pure functions of tensors, which import nothing else of this package."""
