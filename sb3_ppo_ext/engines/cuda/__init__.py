"""Training on a GPU without waiting for it: rollouts are stored there, and whole epochs replay as CUDA graphs.

Orders of rows and the noise of actions are drawn by torch's generator of the device, and a rollout's advantages are
summed in another order than Stable-Baselines3's: runs with a seed repeat, but are not those of ``compile=False``.
"""
