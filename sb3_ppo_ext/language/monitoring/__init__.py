"""What the log and the terminal show of a language model's training."""
