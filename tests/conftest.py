"""What all tests share: shapes and types checked on every call into longshot, and the film that lies beside the repo."""

import os
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# Before anything imports longshot. The tower: an int will do where a float is asked for, as Python's typing has it.
install_import_hook("longshot", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")


# A busy machine must not fail a test for being slow, and CI must give the same verdict twice.
settings.register_profile("longshot", deadline=None, derandomize="CI" in os.environ, print_blob=True)
settings.load_profile("longshot")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real footage and scripts for trials; tests that need it are skipped where it is not."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the trial data in {folder}, which is not part of the project")
    return folder


@pytest.fixture(scope="session")
def film(shared_data: Path) -> Path:
    """Thirty seconds of Big Buck Bunny: 720 frames of 854x480 at 24 frames/s, cuts at frames 285, 378 and 553."""
    return shared_data / "big-buck-bunny-480p-30s.mp4"


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """A weights file like the shipped one's, of a base that is small, fast, and random."""
    from commands import quick_base

    path = tmp_path_factory.mktemp("base") / "quick.safetensors"
    quick_base().save(path)
    return path
