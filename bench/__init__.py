"""Benchmarks, experiments and fault tests of gms_fast; README.md says which command to run.

They use the installed gms_fast, which may be another one than the checkout's. `python -m` puts the checkout first on
the path, so this module moves it to the end.
"""

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
sys.path.sort(key=lambda entry: Path(entry).resolve() == _ROOT)
