"""A run that was stopped, killed, or out of disk goes on as if nothing had happened (invariant 6)."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_run import STREAM, stage, tiny_base

from longshot.errors import UserError
from longshot.flow import SigmaDraw
from longshot.train.checkpoint import TrainingState
from longshot.train.loop import CHECKPOINT, Trainer
from longshot.train.parallel import Ranks


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every number that a run will use again."""
    state = TrainingState.load(folder / CHECKPOINT)
    flat = {f"weights {k}": v for k, v in state.weights.items()} | {
        f"average {k}": v for k, v in state.average.items()
    }
    for index, entries in state.optimizer["state"].items():
        flat |= {f"optimizer {index} {k}": torch.as_tensor(v) for k, v in entries.items()}
    flat["lr"] = torch.tensor([group["lr"] for group in state.optimizer["param_groups"]], dtype=torch.float64)
    return flat | {"step": torch.tensor(state.step)}


def assert_identical(one: Path, other: Path) -> None:
    a, b = state_of(one), state_of(other)
    assert a.keys() == b.keys() and len(a) > 100
    for name in a:
        assert torch.equal(a[name], b[name]), name


def steps_logged(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """A run of eight steps that nothing disturbed."""
    folder = tmp_path_factory.mktemp("straight")
    Trainer(tiny_base(), stage(8), folder).run(workers=0)
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_four_steps_and_four_more_are_eight_steps_bit_for_bit_with_any_number_of_workers(
    straight, tmp_path, workers
):
    Trainer(tiny_base(), stage(8), tmp_path).run(workers=workers, until=4)
    Trainer(tiny_base(), stage(8), tmp_path).run(workers=2 - workers)
    assert_identical(straight, tmp_path)
    assert steps_logged(tmp_path) == steps_logged(straight) == list(range(1, 9))


def test_the_averaged_weights_are_exported_as_a_base(straight):
    base = type(tiny_base()).load(straight / "weights.safetensors")
    average = TrainingState.load(straight / CHECKPOINT).average
    assert all(torch.equal(v, average[k]) for k, v in base.network.state_dict().items())


def start(folder: Path, steps: int) -> subprocess.Popen:
    """A run in a process of its own, as a terminal starts it: with a process group that Ctrl-C reaches as a whole.

    It has as many threads as the runs of this process: on some processors another number rounds otherwise.
    """
    threads = str(torch.get_num_threads())
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": threads}
    command = [sys.executable, str(Path(__file__).with_name("small_run.py")), str(folder), str(steps)]
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def read_to_step(process: subprocess.Popen, step: int) -> None:
    assert process.stdout
    for line in process.stdout:
        if int(line) == step:
            return
    pytest.fail(f"the run ended early: {process.stderr.read() if process.stderr else ''}")


def test_a_run_that_was_killed_goes_on_from_a_whole_checkpoint(straight, tmp_path):
    process = start(tmp_path, 8)
    try:
        read_to_step(process, 4)  # it writes a checkpoint after every step, so it dies at or near one
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert 3 <= TrainingState.load(tmp_path / CHECKPOINT).step < 8
    (tmp_path / ".checkpoint.0123456789ab.safetensors").write_bytes(b"half")
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 9, "lo')
    Trainer(tiny_base(), stage(8), tmp_path).run(workers=0)
    assert_identical(straight, tmp_path)
    assert steps_logged(tmp_path) == list(range(1, 9))
    assert not list(tmp_path.glob(".checkpoint*"))


def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(straight, tmp_path):
    process = start(tmp_path, 1000)
    try:
        read_to_step(process, 3)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    step = TrainingState.load(tmp_path / CHECKPOINT).step
    assert "KeyboardInterrupt" in errors and f"stopped at step {step} of 1000 and saved" in errors
    assert "DataLoader" not in errors
    assert steps_logged(tmp_path) == list(range(1, step + 1))


def test_an_interrupt_between_steps_saves_and_is_raised_again(straight, tmp_path):
    def interrupt(row):
        if row["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(tiny_base(), stage(8), tmp_path).run(workers=0, on_step=interrupt)
    assert TrainingState.load(tmp_path / CHECKPOINT).step == 3
    Trainer(tiny_base(), stage(8), tmp_path).run(workers=0)
    assert_identical(straight, tmp_path)


def test_an_interrupt_within_a_step_leaves_the_checkpoint_before_it(tmp_path, monkeypatch):
    trainer = Trainer(tiny_base(), stage(8), tmp_path)
    trainer.run(workers=0, until=2)
    before = (tmp_path / CHECKPOINT).read_bytes()

    def half_a_step():
        next(trainer.base.network.parameters()).data.zero_()
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.optimizer, "step", half_a_step)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(workers=0)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_a_full_disk_leaves_the_checkpoint_before_it_whole(straight, tmp_path):
    shutil.copytree(straight, tmp_path / "run")
    trainer = Trainer(tiny_base(), stage(12), tmp_path / "run")
    before = (tmp_path / "run" / CHECKPOINT).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(UserError, match=r"checkpoint\.safetensors: could not be written \(.+\)$"):
            trainer.run(workers=0, until=9)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "run" / CHECKPOINT).read_bytes() == before
    assert not list((tmp_path / "run").glob(".checkpoint*"))
    trainer.run(workers=0, until=9)


@pytest.mark.parametrize(
    ("setting", "changed"),
    [
        ("lr=0.003, not 0.5", {"lr": 0.5}),
        ("precision='fp32', not 'bf16'", {"precision": "bf16"}),
        ("stream.scenes=2, not 3", {"stream": replace(STREAM, scenes=3)}),
        (f"sigma.mean={SigmaDraw().mean}, not 0.0", {"sigma": SigmaDraw(mean=0.0)}),
    ],
)
def test_a_run_with_other_settings_is_refused_by_name(straight, setting, changed):
    with pytest.raises(
        UserError, match=rf"was trained with {setting}; use another folder or the same settings"
    ):
        Trainer(tiny_base(), replace(stage(8), **changed), straight)


def test_a_run_with_another_network_is_refused(straight):
    with pytest.raises(
        UserError, match=r"checkpoint\.safetensors: the tensor .+ has shape .+; this network needs"
    ):
        Trainer(tiny_base(width=48), stage(8), straight)


def test_a_checkpoint_from_before_a_setting_goes_on_as_it_was_made(straight, tmp_path):
    state = TrainingState.load(straight / CHECKPOINT)
    del state.config["worn"]
    state.save(tmp_path / CHECKPOINT)
    assert Trainer(tiny_base(), stage(8), tmp_path).step == 8
    with pytest.raises(UserError, match=r"was trained with worn=0.0, not 0.5"):
        Trainer(tiny_base(), replace(stage(8), worn=0.5), tmp_path)


def test_a_run_may_be_made_longer(straight, tmp_path):
    shutil.copytree(straight, tmp_path / "run")
    Trainer(tiny_base(), stage(10), tmp_path / "run").run(workers=0)
    assert TrainingState.load(tmp_path / "run" / CHECKPOINT).step == 10


@pytest.mark.parametrize("damage", ["half", "other", "pickle"])
def test_a_damaged_checkpoint_is_named(straight, tmp_path, damage):
    whole = (straight / CHECKPOINT).read_bytes()
    other = (straight / "weights.safetensors").read_bytes()
    content = {"half": whole[: len(whole) // 2], "other": other, "pickle": b"\x80\x04\x95"}[damage]
    (tmp_path / CHECKPOINT).write_bytes(content)
    with pytest.raises(UserError, match=r"checkpoint\.safetensors: "):
        Trainer(tiny_base(), stage(8), tmp_path)


def test_too_few_scenes_for_the_ranks_are_refused(tmp_path):
    with pytest.raises(UserError, match="2 scenes a step can't be shared by 3 processes"):
        Trainer(tiny_base(), stage(8), tmp_path, Ranks(0, 3))
