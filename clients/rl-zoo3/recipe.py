"""rl_zoo3: train PPO from a file of hyperparameters, then let the trained model play."""

import re
import subprocess
import sys
from pathlib import Path

HYPERPARAMETERS = Path(__file__).with_name("hyperparams.yml")
COMMON = (
    "--algo ppo --env llmgym/Engine-v0 --gym-packages llmgym "
    "--env-kwargs scenario:'latency' load:0.8 max_steps:256"
)


def zoo(command: str, options: str) -> str:
    words = [sys.executable, "-m", f"rl_zoo3.{command}", *COMMON.split(), *options.split()]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr[-4000:])
    return done.stdout


zoo("train", f"--conf-file {HYPERPARAMETERS} --log-folder logs --save-freq -1")
played = zoo("enjoy", "--folder logs --exp-id 0 --n-timesteps 512 --no-render --device cpu")
returns = [float(x) for x in re.findall(r"Episode Reward: (-?[\d.]+)", played)]
print(
    f"train and enjoy: {4096} steps, {len(returns)} episodes played, "
    f"mean return {sum(returns) / len(returns):.1f}"
)
