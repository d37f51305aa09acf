"""Code that needs a process of its own, such as what an import does."""

import subprocess
import sys


def printed(code: str) -> str:
    """What Python code prints in a process of its own; an error there fails the test."""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout
