"""The log of a language model's training, warnings, and samples on the terminal."""
