"""What is shipped: the wheel, built and installed away from the checkout, and the project's metadata."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import llmgym

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Run by the installed package's interpreter: where things come from, and that they work.
PROBE = """
import importlib.util, json
import llmgym, llmgym.agents, llmgym.baselines

print(json.dumps({
    "files": [module.__file__ for module in (llmgym, llmgym.agents, llmgym.baselines)],
    "version": llmgym.__version__,
    "scenario": llmgym.scenario("paper-figure-1").name,
    "bare": [name for name in ("agents", "baselines") if importlib.util.find_spec(name)],
}))
"""


def run(*command: str | Path, cwd: Path) -> str:
    """The standard output of a command that must succeed."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env["JAX_PLATFORMS"] = "cpu"
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, the wheel made from it, and in direct/ the wheel made from the tree."""
    work = tmp_path_factory.mktemp("package")
    source = work / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("llmgym", "baselines", "agents"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    built = work / "dist"
    build = (sys.executable, "-m", "build", source, "--outdir")
    run(*build, built, cwd=work)
    run(*build, built / "direct", "--wheel", cwd=work)
    return built


def shipped() -> set[str]:
    """Paths that a wheel must hold: the code and data under llmgym/, through its links."""
    suffixes = {".py", ".toml", ".npz", ".safetensors", ".typed"}
    return {
        str(Path(folder, name).relative_to(ROOT))
        for folder, _, names in os.walk(ROOT / "llmgym", followlinks=True)
        for name in names
        if Path(name).suffix in suffixes
    }


@pytest.mark.slow
def test_wheel_holds_all_code_and_data_under_llmgym(dist: Path) -> None:
    assert any(name.startswith("llmgym/baselines/") for name in shipped())
    assert any(name.startswith("llmgym/agents/") for name in shipped())
    for folder in (dist, dist / "direct"):
        (wheel,) = folder.glob("*.whl")
        names = set(zipfile.ZipFile(wheel).namelist())
        metadata = {name for name in names if name.split("/")[0].endswith(".dist-info")}
        assert names - metadata == shipped()


@pytest.mark.slow
def test_sdist_holds_no_links(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert all(member.isfile() or member.isdir() for member in members)
    names = {member.name.split("/", 1)[-1] for member in members}
    assert shipped() <= names
    assert not {name.split("/")[0] for name in names} & {"baselines", "agents"}


@pytest.mark.slow
def test_wheel_works_in_a_fresh_environment(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", venv, cwd=tmp_path)
    python = venv / "bin" / "python"
    run(python, "-m", "pip", "install", "-c", ROOT / "constraints.txt", wheel, cwd=tmp_path)

    # -I: neither the working directory nor PYTHONPATH can lend the package anything.
    found = json.loads(run(python, "-I", "-c", PROBE, cwd=tmp_path))
    assert all(Path(file).is_relative_to(venv) for file in found["files"])
    assert found["version"] == PROJECT["version"]
    assert found["scenario"] == "paper-figure-1"
    assert found["bare"] == []
    assert "benchmark" in run(venv / "bin" / "llmgym", "--help", cwd=tmp_path)


def test_it_is_found_from_the_folder_that_holds_the_clone(tmp_path: Path) -> None:
    (tmp_path / "llmgym").mkdir()  # as a clone is called, which is no package itself
    found = run(sys.executable, "-c", "import llmgym; print(llmgym.__version__)", cwd=tmp_path)
    assert found.strip() == llmgym.__version__


def test_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["version"] == llmgym.__version__ == citation["version"]


def test_citation_names_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    (paper,) = citation["references"]
    assert paper["title"].startswith("Throughput-Optimal Scheduling Algorithms")
    assert {"type": "other", "value": "arXiv:2504.07347"}.items() <= paper["identifiers"][0].items()


def test_links_lead_to_the_top_folders() -> None:
    for name in ("baselines", "agents"):
        link = ROOT / "llmgym" / name
        assert link.is_symlink()
        assert os.readlink(link) == os.path.join("..", name)


def test_no_upper_caps() -> None:
    extras = PROJECT["optional-dependencies"]
    requirements = [*PROJECT["dependencies"], *(r for extra in extras.values() for r in extra)]
    assert not [r for r in requirements if set("<~=") & set(r.replace(">=", ""))]


OF_CLIENTS = {
    "sbx", "zoo", "rllib", "torchrl", "tianshou", "skrl", "rejax", "supersuit", "minari", "wandb",
}  # fmt: skip


def test_constraints_pin_every_direct_requirement() -> None:
    # RL tools are tried in environments of their own, with clients/constraints.txt.
    extras = {k: v for k, v in PROJECT["optional-dependencies"].items() if k not in OF_CLIENTS}
    requirements = [*PROJECT["dependencies"], *(r for extra in extras.values() for r in extra)]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines if line[0] != "#")
    assert {re.split(r"[>\[]", r)[0] for r in requirements} <= pins.keys()
