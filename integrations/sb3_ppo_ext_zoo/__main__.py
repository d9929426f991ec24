"""``python -m sb3_ppo_ext_zoo`` is the ``ppox`` command."""

import sys

from sb3_ppo_ext_zoo.cli import main

if __name__ == "__main__":
    sys.exit(main())
