import subprocess
import sys

import pytest

import longshot


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, longshot; print([name for name in ('torch', 'numpy', 'av', 'PIL', 'pydantic') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", longshot.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(longshot, name).__doc__
    assert name in dir(longshot)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'scnee'"):
        longshot.scnee  # noqa: B018
