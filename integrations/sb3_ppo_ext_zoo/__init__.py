"""PPOX in rl_zoo3: registration, the ``ppox`` commands, tuned settings (``ppox.yml``) and the Optuna search space."""

from sb3_ppo_ext.optional_packages import require_packages

# requests: rl_zoo3 2.9 imports it (load_from_hub) without declaring it.
require_packages("sb3_ppo_ext_zoo", '"sb3_ppo_ext[zoo]"', "rl_zoo3", "requests")

from sb3_ppo_ext_zoo.registration import register  # noqa: E402  # after the check, so that its message comes first

__all__ = ["register"]
