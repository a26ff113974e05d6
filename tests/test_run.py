"""run.py, which sets everything up; nothing is installed or fetched here."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parents[1] / "run.py"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run.py as a module, at home in an empty folder, with a pip that only notes what it is asked for."""
    spec = importlib.util.spec_from_file_location("run_under_test", RUN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["numpy", "torch>=2.11,<2.14"]\n')
    (tmp_path / "constraints.txt").write_text("numpy==2.4.6\n")
    venv = tmp_path / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(sys.executable)
    for name, path in {"ROOT": tmp_path, "VENV": venv, "SCRIPTS": venv / "bin"}.items():
        monkeypatch.setattr(module, name, str(path))
    monkeypatch.setattr(module, "PYTHON", str(venv / "bin" / "python"))
    monkeypatch.setattr(module, "STAMP", str(venv / "longshot-setup.json"))
    monkeypatch.setattr(module, "upgrade_old_pip", lambda: None)
    monkeypatch.setattr(module, "report_torch", lambda wants_cpu: None)
    monkeypatch.delenv("LONGSHOT_TORCH", raising=False)
    module.asked = []

    def pip(*arguments, quiet=False):
        module.asked.append(arguments)
        return 0

    monkeypatch.setattr(module, "pip", pip)
    return module


@pytest.fixture
def cuda_index(run, monkeypatch):
    """A package index whose torch for this machine brings CUDA."""
    plan = {"torch": "2.13.0", "nvidia-cublas": "13.1", "sympy": "1.14.0"}
    monkeypatch.setattr(run, "planned", lambda requirement: plan)
    return run


def test_a_set_up_is_done_once(run, monkeypatch):
    monkeypatch.setattr(run, "planned", lambda requirement: {})
    run.set_up(["test"])
    assert run.asked == [
        ("install", "--no-compile", "--constraint", "constraints.txt", "--editable", ".[test]"),
    ]
    run.set_up(["test"])
    run.set_up([])
    assert len(run.asked) == 1


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_set_up_is_redone_when_what_it_installs_changes(run, monkeypatch, tmp_path, name):
    monkeypatch.setattr(run, "planned", lambda requirement: {})
    run.set_up([])
    (tmp_path / name).write_text((tmp_path / name).read_text() + "# changed\n")
    assert not run.is_ready([])


def test_more_extras_keep_those_that_are_there(run, monkeypatch):
    monkeypatch.setattr(run, "planned", lambda requirement: {})
    run.set_up(["test"])
    run.set_up(["check"])
    assert run.asked[-1][-1] == ".[check,test]"


def test_an_install_that_failed_does_not_pass_for_a_finished_one(run, monkeypatch):
    monkeypatch.setattr(run, "planned", lambda requirement: {})
    run.set_up([])
    monkeypatch.setattr(run, "pip", lambda *arguments, quiet=False: 1)
    with pytest.raises(run.SetupError, match="pip could not install longshot"):
        run.set_up(["test"])
    assert not run.is_ready([])


def test_a_damaged_stamp_means_a_new_set_up(run):
    Path(run.STAMP).write_text('{"root": ')
    assert not run.is_ready([])
    Path(run.STAMP).write_text(json.dumps(["root"]))
    assert not run.is_ready([])


def test_without_a_driver_torch_comes_from_the_cpu_index_and_asks_it_once(cuda_index, monkeypatch):
    monkeypatch.setattr(cuda_index, "has_nvidia_driver", lambda: False)
    cuda_index.install_torch()
    (asked,) = cuda_index.asked
    assert asked[-3:] == ("--index-url", cuda_index.CPU_INDEX, "torch>=2.11,<2.14")
    assert asked[asked.index("--retries") + 1] == "0"


def test_without_a_driver_and_a_cpu_index_nothing_large_is_installed(cuda_index, monkeypatch):
    monkeypatch.setattr(cuda_index, "has_nvidia_driver", lambda: False)
    monkeypatch.setattr(cuda_index, "pip", lambda *arguments, quiet=False: 1)
    with pytest.raises(cuda_index.SetupError, match=r"several GB of CUDA.*(.|\n)*LONGSHOT_TORCH=cuda"):
        cuda_index.install_torch()


@pytest.mark.parametrize("wish", ["driver", "variable"])
def test_with_a_driver_or_by_wish_torch_comes_with_cuda(cuda_index, monkeypatch, wish):
    monkeypatch.setattr(cuda_index, "has_nvidia_driver", lambda: wish == "driver")
    if wish == "variable":
        monkeypatch.setenv("LONGSHOT_TORCH", "cuda")
    cuda_index.install_torch()
    assert cuda_index.asked == [
        ("install", "--no-compile", "--constraint", "constraints.txt", "torch>=2.11,<2.14")
    ]


def test_an_index_that_gives_a_cpu_build_is_enough(run, monkeypatch):
    monkeypatch.setattr(run, "planned", lambda requirement: {"torch": "2.13.0+cpu", "sympy": "1.14.0"})
    monkeypatch.setattr(run, "has_nvidia_driver", lambda: False)
    run.install_torch()
    assert "--index-url" not in run.asked[0]


def test_a_wish_that_is_none_is_refused(run, monkeypatch):
    monkeypatch.setenv("LONGSHOT_TORCH", "rocm")
    with pytest.raises(run.SetupError, match="it can be cpu or cuda"):
        run.install_torch()


def test_a_python_without_venv_is_told_what_to_install(run, monkeypatch):
    monkeypatch.setattr(run, "runs", lambda *arguments: False)
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(run.SetupError, match=r"sudo apt-get install python3\.\d+-venv"):
        run.make_venv()


def test_an_old_python_is_named(run, monkeypatch):
    monkeypatch.setattr(run.sys, "version_info", (3, 9, 2))
    monkeypatch.setattr(run.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or newer; this is 3\.9"):
        run.require_python()


def test_waiting_threads_rest_unless_a_person_says_otherwise(run, monkeypatch):
    given = {}
    monkeypatch.setattr(run.os, "execve", lambda path, command, environment: given.update(environment))
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    run.hand_over(["-m", "longshot"])
    assert given["OMP_WAIT_POLICY"] == "passive"
    assert given["GOMP_SPINCOUNT"] == "5"


@pytest.mark.skipif(os.name == "nt", reason="no such lock there")
def test_two_set_ups_at_once_take_turns(run, tmp_path):
    code = """
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("run", sys.argv[1])
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)
run.ROOT = sys.argv[2]
with run.only_one_at_a_time():
    print("in", flush=True)
    time.sleep(0.3)
    print("out", flush=True)
"""
    log = tmp_path / "log"
    with log.open("w") as file:
        command = [sys.executable, "-c", code, str(RUN), str(tmp_path)]
        both = [subprocess.Popen(command, stdout=file, stderr=subprocess.DEVNULL) for _ in range(2)]
        assert [process.wait() for process in both] == [0, 0]
    assert log.read_text().split() == ["in", "out", "in", "out"]


def test_without_arguments_the_commands_are_shown():
    result = subprocess.run([sys.executable, str(RUN)], capture_output=True, text=True, check=True)
    assert "python3 run.py test" in result.stdout
