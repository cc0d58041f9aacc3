"""Several processes as on several machines, over loopback; docs/scale.md as it is printed (its blocks ``bash``)."""

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
import yaml

from gkd_plugin.config.tree import dump
from tests.runner.fakes import call, student_config
from tests.test_docs import ROOT, blocks

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")]
PAGE = ROOT / "docs/scale.md"
DYING = """
import os, signal
from pathlib import Path
from tests.fakes import ViewedImages

class Dying(ViewedImages):
    def __getitem__(self, index):
        how, rows = os.environ.get("DIES"), Path("runs/student/metrics.jsonl")
        if how and int(os.environ["RANK"]) + 1 == int(os.environ["WORLD_SIZE"]) and rows.exists():
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("no such photo")
        return super().__getitem__(index)
"""


@pytest.fixture
def env(tmp_path):
    """Of a machine with torchrun on its path, a student to train in its working directory, and no GPU."""
    tree = student_config()
    del tree["models"]["teacher_model"]["src_ckpt"]
    tree["datasets"]["train"] = call("dying.Dying")
    tree["checkpoint"] = {"every_steps": 1}
    (tmp_path / "student.yaml").write_text(dump(tree), encoding="utf-8")
    (tmp_path / "dying.py").write_text(DYING, encoding="utf-8")
    programs = {"torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"', "scontrol": "echo localhost"}
    programs["srun"] = '"$@" & first=$!; "$@" & wait $!; code=$?; wait $first && exit $code'
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        (tmp_path / "bin" / name).chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    own = {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **own}


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def together(folder, commands):
    """Exit codes, and all that the commands say."""
    options = {"cwd": folder, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = [subprocess.Popen(words, env=env, **options) for words, env in commands]
    said = "".join(process.communicate(timeout=300)[0] for process in started)
    return [process.returncode for process in started], said


def two_machines(folder, env, *words):
    (line,) = [block for block in blocks(PAGE, "bash") if "--node_rank $NODE" in block]
    line = line.replace("first.machine", "127.0.0.1").replace("29500", str(free_port()))
    command = line.replace("--nproc_per_node 4", "--nproc_per_node 1").strip() + " ".join(["", *words])
    return together(folder, [(["bash", "-c", command], {**env, "NODE": node}) for node in "01"])


def check_finished(folder, codes, said, processes=2):
    assert codes == [0] * len(codes), said
    made = json.loads((folder / "runs/student/summary.json").read_text("utf-8"))
    assert (made["status"], made["processes"]) == ("finished", processes)
    assert said.count("2 processes with 12 images each: a step takes 24 images") == processes - 1


@pytest.mark.parametrize(("how", "told"), [("killed", "SIGKILL"), ("failed", "no such photo")])
def test_a_process_that_ends_ends_all_and_the_same_number_of_them_goes_on(how, told, env, tmp_path):
    codes, said = two_machines(tmp_path, {**env, "DIES": how})
    assert codes == [1, 1], said
    assert told in said
    check_finished(tmp_path, *two_machines(tmp_path, env, "--resume"))


def one_machine(folder, env, *words):
    command = ["torchrun", "-m", "gkd_plugin", "run", "student.yaml", "--output", "runs/student", *words]
    return together(folder, [(command, env)])


@pytest.mark.parametrize(
    ("before", "after", "processes"), [(two_machines, one_machine, 1), (one_machine, two_machines, 2)]
)
def test_another_number_of_processes_goes_on(before, after, processes, env, tmp_path):
    codes, said = before(tmp_path, {**env, "DIES": "killed"})
    assert set(codes) == {1}, said
    codes, said = after(tmp_path, env, "--resume")
    assert f"processes is {processes} now, was {3 - processes}" in said
    assert "resumes stage" in said
    check_finished(tmp_path, codes, said, processes)


def test_the_script_for_slurm(env, tmp_path):
    (script,) = [block for block in blocks(PAGE, "bash") if block.startswith("#!/bin/bash")]
    job = str(free_port() - 20000)
    given = {"SLURM_JOB_ID": job, "SLURM_JOB_NODELIST": "a,b", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "1"}
    check_finished(tmp_path, *together(tmp_path, [(["bash", "-c", script], {**env, **given})]))


def test_the_manifest_for_kubernetes(env, tmp_path):
    service, job = (yaml.safe_load(block) for block in blocks(PAGE, "yaml"))
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    assert given["MASTER_ADDR"] == f"{job['metadata']['name']}-0.{pod['subdomain']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert int(given["NODES"]) == job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    assert int(given["GPUS"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    here = {**env, **given, "GPUS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    pods = [(container["command"], {**here, "JOB_COMPLETION_INDEX": index}) for index in "01"]
    check_finished(tmp_path, *together(tmp_path, pods))
