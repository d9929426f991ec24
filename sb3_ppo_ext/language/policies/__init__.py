"""Language models as policies of Stable-Baselines3."""
