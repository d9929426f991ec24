"""PPOX: Stable-Baselines3's PPO with schedules, adaptive KL and an open dashboard."""
