"""PPOX in rl_zoo3: registration, the ``ppox`` commands, tuned settings (``ppox.yml``) and the Optuna search space."""

from importlib.util import find_spec

# requests: rl_zoo3 2.9 imports it (load_from_hub) without declaring it.
_missing = [name for name in ("rl_zoo3", "requests") if find_spec(name) is None]
if _missing:
    raise ImportError(
        f"sb3_ppo_ext_zoo needs {' and '.join(_missing)}, which cannot be found. Install with\n"
        '  pip install "sb3_ppo_ext[zoo]"'
    )

from sb3_ppo_ext_zoo.registration import register  # noqa: E402  # after the check, so that its message comes first

__all__ = ["register"]
