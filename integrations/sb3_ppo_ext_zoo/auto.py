"""Importing this module adds PPOX to the stock rl_zoo3 scripts of the same process.

The import is the one line of a ``custom_envs.py``: rl_zoo3 imports a module of that name from the working directory
before it reads its command line. So ``python -m rl_zoo3.train --algo ppox`` works there, with ``ppox.yml`` and every
knob.
"""

import sys

from sb3_ppo_ext_zoo.registration import register

register()

# rl_zoo3.record_video imports rl_zoo3.exp_manager first, and that imports custom_envs before it has defined its class.
# The class cannot be extended at that moment, and need not be: only training reads settings.
_half_imported = "rl_zoo3.exp_manager" in sys.modules and not hasattr(
    sys.modules["rl_zoo3.exp_manager"], "ExperimentManager"
)
if not _half_imported:
    from sb3_ppo_ext_zoo.experiment import install

    install()
