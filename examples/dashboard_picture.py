"""Trains PPOX on Pendulum with several knobs moving, and photographs its TensorBoard dashboard.

    python examples/dashboard_picture.py                        # writes examples/images/dashboard.png
    python examples/dashboard_picture.py --timesteps 4096 --picture /tmp/quick.png

Needs Chromium (Debian: apt-get install chromium).
"""

import argparse
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_ppo_ext import PPOX, AdaptiveKL, Proportional

PICTURE = Path(__file__).parent / "images" / "dashboard.png"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def train(logs: str, timesteps: int) -> None:
    model = PPOX(
        "MlpPolicy",
        make_vec_env("Pendulum-v1", n_envs=8, seed=1),
        n_steps=256,
        batch_size=128,
        gamma=0.9,
        seed=1,
        tensorboard_log=logs,
        learning_rate=AdaptiveKL(start=3e-4, target=0.01, bounds=(1e-5, 1e-2)),  # as rsl_rl
        clip_range="cosine:0.25:0.1",
        clip_range_high="cosine:0.35:0.1",
        kl_coef=AdaptiveKL(start=0.1, target=0.01, law=Proportional(horizon=10_000)),
        ent_coef="linear:0.01:0",
        normalize_value=True,
    )
    evaluation = EvalCallback(make_vec_env("Pendulum-v1", 1, seed=2), eval_freq=1024, verbose=0)
    model.learn(timesteps, callback=evaluation, tb_log_name="pendulum")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def tensorboard(logs: Path) -> Iterator[str]:
    """The address of a TensorBoard that has read the dashboard of ``logs``."""
    address = f"http://localhost:{free_port()}"
    # A relative folder: its name is on the page.
    arguments = ["--logdir", logs.name, "--host", "localhost", "--port", address.rsplit(":", 1)[1]]
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", *arguments],
        cwd=logs.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_dashboard(address, server)
        yield address
    finally:
        server.terminate()
        server.wait()


def wait_for_dashboard(address: str, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/data/plugin/custom_scalars/layout", timeout=5) as reply:
                if json.load(reply):
                    return
        except OSError:  # not listening yet
            pass
        time.sleep(0.5)
    sys.exit("TensorBoard did not come up with a PPOX dashboard within two minutes.")


def photograph(browser: str, address: str, picture: Path, size: str) -> None:
    """A picture of the page after its charts have been fetched and drawn."""
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.unlink(missing_ok=True)
    quiet = ["quic", "first-run", "background-networking", "component-update", "sync", "gpu"]
    switches = [f"--{'no' if name == 'first-run' else 'disable'}-{name}" for name in quiet]
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless", "--no-sandbox", *switches, f"--user-data-dir={profile}"]
        command += ["--hide-scrollbars", f"--window-size={size}", "--virtual-time-budget=30000"]
        subprocess.run([*command, f"--screenshot={picture}", address], check=True, capture_output=True, timeout=180)
    if not picture.exists():
        sys.exit(f"{browser} ended without writing {picture}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--timesteps", type=int, default=80_000)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--page", default="custom_scalars", help="or: timeseries, scalars, hparams")
    parser.add_argument("--size", default="1500,1980", help="of the window: width,height")
    parser.add_argument("--logs", type=Path, help="photograph these logs instead of training")
    options = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"No browser to take the picture with: none of {', '.join(BROWSERS)} is on the PATH.")
    with tempfile.TemporaryDirectory() as folder:
        logs = options.logs or Path(folder, "runs")
        if options.logs is None:
            train(str(logs), options.timesteps)
        with tensorboard(logs.resolve()) as address:
            photograph(browser, f"{address}/?darkMode=false#{options.page}", options.picture.resolve(), options.size)
    print(f"The dashboard is in {options.picture}")


if __name__ == "__main__":
    main()
