"""How tests run a script as its command line does."""

import sys
from pathlib import Path

SCRIPTS = Path(__file__).parent.parent / "scripts"


def run(monkeypatch, script, *arguments):
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    __import__(script).main()
