"""Rollouts: their collection, buffers, advantages and minibatches."""
