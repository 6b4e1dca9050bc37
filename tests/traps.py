"""Code that leaves a mark where it runs: what a hostile file would bring, for the tests that nothing runs it."""

import io
import json
import pickle
import sys

import pytest
import torch

MODULE = """
import pathlib
pathlib.Path({mark!r}).write_text(__name__)

class Evil:
    config_class = None
    def __init__(self, *args, **kwargs): pass
    def __call__(self, *args, **kwargs): return self
    @classmethod
    def from_pretrained(cls, *args, **kwargs): return cls()
    load_config = from_config = from_dict = get_config_dict = from_pretrained

X = Evil2 = Pipeline = Model = Config = Tokenizer = Evil
"""
PLANTED = (
    "evil",
    "evilmod",
    "pipeline",
    "None",
    "modeling",
    "diffusers_modules/local/pipeline",
    "evilpackage/__init__",
)


class Bomb:
    """A pickle of it runs code when it is read."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return exec, (f"open({self.mark!r}, 'w').close()",)


class Trap:
    """A current folder with hostile modules, which is on the path of imports, and the mark that they leave."""

    def __init__(self, root):
        self.root, self.mark, self.cwd = root, root / "mark", root / "cwd"
        self.text = MODULE.format(mark=str(self.mark))
        for name in PLANTED:
            self.module(self.cwd / f"{name}.py")

    def module(self, path):
        """A hostile module at that path."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.text)

    def pickle(self, path):
        """Weights that run code, as PyTorch saves them."""
        torch.save({"weight": Bomb(str(self.mark))}, path)

    def raw_pickle(self, path):
        """A plain pickle that runs code."""
        path.write_bytes(pickle.dumps(Bomb(str(self.mark))))

    def ran(self):
        """What ran: the mark, and modules that came from the trap."""
        found = [str(getattr(module, "__file__", None)) for module in list(sys.modules.values())]
        marks = [self.mark.read_text()] if self.mark.exists() else []
        return marks + [file for file in found if file.startswith(str(self.root))]


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """The trap; nothing may have run in it at the end of the test."""
    trap = Trap(tmp_path / "trap")
    monkeypatch.chdir(trap.cwd)
    monkeypatch.syspath_prepend(str(trap.cwd))
    monkeypatch.setenv("INVSOLVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))  # who is asked whether to trust code says yes
    yield trap
    assert trap.ran() == []


def rewrite(path, **changes):
    """Other values in a JSON file, which may be a new one."""
    values = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(values | changes))
