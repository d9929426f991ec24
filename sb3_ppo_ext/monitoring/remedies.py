"""Remedies for a number that is not finite, by where it was found: the cause, then the argument to change."""

ENVIRONMENT = (
    "The environment returned it, or a wrapper made it. VecCheckNan(env, raise_exception=True) of "
    "stable_baselines3.common.vec_env stops at the step it comes from. If the environment is wrapped in VecNormalize, "
    "its running statistics now hold it too: load them from before."
)
REWARD = (
    "The environment returned it, or it is the value of a time-limited episode's last observation "
    '(infos[env]["terminal_observation"]), which SB3 adds to the reward. VecCheckNan(env, raise_exception=True) of '
    "stable_baselines3.common.vec_env tells which; VecNormalize's running statistics now hold it too."
)
POLICY = (
    "The policy computed it from observations that are finite: its parameters have diverged, or its own code divides "
    "by zero. Load the last good model; lower learning_rate, n_epochs or max_grad_norm, or let the learning rate "
    'follow the KL with AdaptiveKL(start=3e-4, target=0.01, every="minibatch").'
)
ADVANTAGE = (
    "Rewards and values of the rollout are finite: either their sums leave float32's range (scale the rewards, or wrap "
    "the environment in VecNormalize), or the value of the observation after the last step is not finite."
)
VALUE_LOSS = (
    "The value targets are out of the value function's reach. Scale the rewards (VecNormalize) or set "
    "normalize_value=True; lower vf_coef or learning_rate."
)
KL = (
    "The new policy gives actions of the rollout a probability that is zero or overflows: the update went too far. "
    "Lower learning_rate or n_epochs, or set target_kl; let the learning rate follow the KL with "
    'AdaptiveKL(start=3e-4, target=0.01, every="minibatch").'
)
GRADIENT = (
    "The loss itself is finite, so its derivative overflows: a standard deviation or probability close to zero, or an "
    "observation without bounds. Lower learning_rate, normalise observations (VecNormalize) or raise ent_coef; "
    "max_grad_norm cannot mend it."
)
PARAMETER = (
    "An earlier update or an assignment made it so; the observations are finite. Load the last good model; lower "
    "learning_rate or n_epochs, or let the learning rate follow the KL with "
    'AdaptiveKL(start=3e-4, target=0.01, every="minibatch").'
)
LOSS = "Lower learning_rate or n_epochs, and check the scale of rewards and observations (VecNormalize)."
