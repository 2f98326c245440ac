"""The recipes of docs/clusters.md: their syntax, their commands, and that their runs plan."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import train
from cwm_jax.config import schema
from cwm_jax.config.files import load_config
from cwm_jax.sharding import mesh_shape
from cwm_jax.training.goodput import Goodput
from cwm_jax.training.plan import make_plan

ROOT = Path(__file__).parents[1]
SLURM = ROOT / "docs/recipes/slurm.sbatch"
JOBSETS = sorted((ROOT / "docs/recipes").glob("*.yaml"))
RECIPES = [SLURM, *JOBSETS]


def jobset(path: Path) -> dict:
    """The one replicated job of a JobSet."""
    (document,) = yaml.safe_load_all(path.read_text())
    assert (document["apiVersion"], document["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (job,) = document["spec"]["replicatedJobs"]
    return {"set": document["metadata"]["name"], "name": job["name"]} | job["template"]["spec"]


def container(path: Path) -> dict:
    (found,) = jobset(path)["template"]["spec"]["containers"]
    return found


def script(path: Path) -> str:
    if path == SLURM:
        return path.read_text()
    found = container(path)
    assert found["command"] == ["bash", "-c"] and len(found["args"]) == 1
    return found["args"][0]


def train_arguments(path: Path):
    """What train.py's own parser makes of the command; variables of the shell are 0."""
    text = script(path).replace("\\\n", " ")
    (command,) = re.findall(r"python train\.py (.*?)(?:\|\||$)", text, flags=re.MULTILINE)
    return train._parser().parse_args(shlex.split(re.sub(r"\$\{?\w+\}?", "0", command)))


def processes_and_devices(path: Path) -> tuple[int, int]:
    if path == SLURM:
        nodes, tasks, gpus = (
            int(re.search(rf"^#SBATCH --{name}=(\d+)$", path.read_text(), re.MULTILINE)[1])
            for name in ("nodes", "ntasks-per-node", "gpus-per-node")
        )
        return nodes * tasks, nodes * gpus
    job = jobset(path)
    assert job["parallelism"] == job["completions"] and job["backoffLimit"] == 0
    (devices,) = container(path)["resources"]["limits"].values()
    return job["completions"], job["completions"] * devices


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_the_shell_parses_it(path):
    subprocess.run(["bash", "-n"], input=script(path), text=True, check=True)
    if shutil.which("shellcheck"):  # of requirements-dev.txt
        command = ["shellcheck", "--shell=bash", "-"]
        done = subprocess.run(command, input=script(path), text=True, capture_output=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_its_command_is_train_pys_and_its_run_plans_on_its_devices(path):
    args = train_arguments(path)
    processes, devices = processes_and_devices(path)
    assert args.distributed or args.num_processes == processes
    config = schema.override(load_config(str(ROOT / args.config)), *args.set)
    assert make_plan(config, num_devices=devices).mesh_sizes == mesh_shape(config.mesh, devices)
    shared = f"{config.base_output_directory}/{config.run_name}/goodput.json"
    assert script(path).count(shared) == 1


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_it_knows_a_finished_run_from_a_stopped_one(tmp_path, path):
    (pattern,) = re.findall(r"grep -q ('.*?') \S+goodput\.json", script(path))
    books = Goodput(tmp_path / "goodput.json")
    for finished in (False, True):
        books.write(1, finished=finished)
        found = subprocess.run(["bash", "-c", f"grep -q {pattern} {tmp_path}/goodput.json"])
        assert (found.returncode == 0) == finished


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_there_is_time_to_save_after_sigterm(path):
    if path == SLURM:
        assert "\n#SBATCH --signal=TERM@900\n" in path.read_text()
    else:
        assert jobset(path)["template"]["spec"]["terminationGracePeriodSeconds"] == 900


def test_the_coordinator_is_the_first_pod_of_its_jobset_and_its_port_is_open():
    path = ROOT / "docs/recipes/gke-gpu-jobset.yaml"
    job = jobset(path)
    host, port = train_arguments(path).coordinator.split(":")
    assert host == f"{job['set']}-{job['name']}-0-0.{job['set']}"
    assert int(port) in [p["containerPort"] for p in container(path)["ports"]]


def test_the_guide_names_every_recipe_and_every_option_it_explains():
    guide = (ROOT / "docs/clusters.md").read_text()
    assert {*re.findall(r"\(recipes/([\w.-]+)\)", guide)} == {path.name for path in RECIPES}
    known = train._parser().format_help()
    for option in {*re.findall(r"--[a-z-]+-timeout-s|--(?:coordinator|num-processes)", guide)}:
        assert option in known
