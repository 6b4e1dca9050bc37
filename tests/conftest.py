"""One thread for all tests: they are small, and threads that wait for each other on a busy machine take minutes.

The fixtures are what tests of the scripts share.
"""

import os
import sys

import pytest
from script_runs import SCRIPTS

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded, and for the commands that tests start

from traps import trap  # noqa: F401 the fixture, which loads torch


@pytest.fixture
def scripts(monkeypatch):
    """The folder of the scripts on the path, as when one of them is run."""
    folder = str(SCRIPTS)
    monkeypatch.syspath_prepend(folder)
    yield
    for name in [n for n, m in sys.modules.items() if str(getattr(m, "__file__", "")).startswith(folder)]:
        del sys.modules[name]


@pytest.fixture
def random_lpips(monkeypatch):
    import lpips as package

    from invsolve import metrics

    network = package.LPIPS(net="alex", pnet_rand=True, verbose=False).eval().requires_grad_(False)
    monkeypatch.setattr(metrics, "lpips_network", lambda: network)
