"""Installs the built wheel, with no extra, into a fresh environment and uses it from outside the checkout.

python .ci/check_wheel.py dist
"""

import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
MUST_CONTAIN = {
    "sb3_ppo_ext/py.typed",
    "sb3_ppo_ext/host/pytorch/headers/regex",
    "sb3_ppo_ext/ppox.py",
    "sb3_ppo_ext/tensordicts/__init__.py",
    "sb3_ppo_ext_torchrl/py.typed",
    "sb3_ppo_ext_torchrl/loss.py",
    "sb3_ppo_ext_zoo/py.typed",
    "sb3_ppo_ext_zoo/ppox.yml",
    "sb3_ppo_ext_zoo/cli.py",
    "sb3_ppo_ext_zoo/registration.py",
}

IMPORTS = """
import sys
import sb3_ppo_ext
from sb3_ppo_ext import (PPOX, AdaptiveClipFraction, AdaptiveKL, Cosine, Exponential, Linear, Piecewise, Proportional,
                         Threshold, Warmup)
assert "site-packages" in sb3_ppo_ext.__file__, f"imported from the checkout: {sb3_ppo_ext.__file__}"
extras = {"torchrl", "tensordict", "transformers", "rl_zoo3"} & sys.modules.keys()
assert not extras, f"import sb3_ppo_ext imports {extras}"
"""

# module -> the extra it needs; none is installed where this runs.
EXTRAS = {"sb3_ppo_ext_zoo": "zoo", "sb3_ppo_ext_torchrl": "torchrl", "sb3_ppo_ext.tensordicts": "torchrl"}
WITHOUT = """
try:
    import {module}
except ImportError as error:
    assert 'pip install "sb3_ppo_ext[{extra}]"' in str(error), f"no pip line in: {{error}}"
else:
    raise SystemExit("{module} imports without its extra: has the wheel lost its extras?")
"""

TRAINS = """
from sb3_ppo_ext import PPOX, AdaptiveKL
model = PPOX("MlpPolicy", "CartPole-v1", n_steps=64, learning_rate="linear:3e-4:0", kl_coef=AdaptiveKL(1.0, 0.01))
model.learn(128)
model.save("model.zip")
assert PPOX.load("model.zip").num_timesteps == 128
"""


def main() -> int:
    wheels = sorted(Path(sys.argv[1]).resolve().glob("*.whl"))
    if len(wheels) != 1:
        print(f"one wheel is needed in {sys.argv[1]}, there are {len(wheels)}")
        return 1
    with zipfile.ZipFile(wheels[0]) as archive:
        files = set(archive.namelist())
    if missing := MUST_CONTAIN - files:
        print(f"{wheels[0].name} lacks {sorted(missing)}")
        return 1
    if strange := {name for name in files if not name.startswith("sb3_ppo_ext")}:
        print(f"{wheels[0].name} also contains {sorted(strange)}")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        return use(wheels[0], Path(folder))


def use(wheel: Path, folder: Path) -> int:
    """Installs ``wheel`` below ``folder`` and runs the checks there, so that no file of the checkout is importable."""
    venv.create(folder / "env", with_pip=True)
    scripts = folder / "env" / ("Scripts" if sys.platform == "win32" else "bin")
    pip = [str(scripts / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--constraint", str(CONSTRAINTS), str(wheel)], check=True, cwd=folder)
    without = {
        f"{module} without its extra": WITHOUT.format(module=module, extra=extra) for module, extra in EXTRAS.items()
    }
    for what, code in {"imports": IMPORTS, **without, "trains": TRAINS}.items():
        # -I: neither PYTHONPATH nor the current folder is searched.
        done = subprocess.run([str(scripts / "python"), "-I", "-c", code], cwd=folder)
        print(f"{'ok' if done.returncode == 0 else 'FAILED'} {wheel.name}: {what}", flush=True)
        if done.returncode != 0:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
