"""Everything that must hold before a change is merged: lint, format, types, generated files, tests.

`python scripts/check.py` runs it all and stops at the first step that fails; words after it go to pytest, as in
`python scripts/check.py -x tests/store`. This is what CI runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def steps(pytest_words: list[str]) -> list[tuple[str, list[str]]]:
    """Name and command of each step, in order: the quick ones first."""
    return [
        ("lint", ["-m", "ruff", "check"]),
        ("format", ["-m", "ruff", "format", "--check"]),
        ("types", ["-m", "mypy"]),
        ("generated files", ["scripts/generate_schemas.py", "--check"]),
        ("reference", ["scripts/generate_docs.py", "--check"]),
        ("tests", ["-m", "pytest", "-q", "-m", "not slow", "-n", "auto", "--maxprocesses", "4", *pytest_words]),
    ]


def main() -> int:
    """Exit code of the first step that fails, else 0."""
    # Nothing here may depend on the network; and threads of several libraries on few cores only wait for each other.
    environment = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", **os.environ}
    for name, command in steps(sys.argv[1:]):
        print(f"--- {name}: python {' '.join(command)}", flush=True)
        started = time.monotonic()
        code = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=False).returncode
        print(f"--- {name}: {'ok' if code == 0 else 'FAILED'} in {time.monotonic() - started:.0f} s", flush=True)
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
