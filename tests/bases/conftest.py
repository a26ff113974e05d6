"""Each pretrained base in small: its folder, our base from it, and diffusers' own pipeline with the same weights."""

from dataclasses import replace

import pytest
from pipelines import SMALL, Small, saved

from longshot.bases import load_base
from longshot.bases.base import Base


@pytest.fixture(scope="session", params=SMALL, ids=lambda small: small.name)
def small(request) -> Small:
    return request.param


@pytest.fixture(scope="session")
def folder(small, tmp_path_factory):
    return saved(small, tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="session")
def base(small, folder) -> Base:
    base = load_base(str(folder))
    base.spec = replace(base.spec, size=small.size)
    return base


@pytest.fixture(scope="session")
def pipe(small):
    """diffusers' own pipeline with the same weights, untouched."""
    return small.make()
