"""Prompts, rewards and the environments made of them."""
