"""Code in a process without threads, which do not survive a fork."""

import subprocess
import sys

from places import ROOT


def alone(code):
    """Run code in a process without threads, which do not survive a fork."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nimport torch; torch.set_num_threads(1)\n{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
