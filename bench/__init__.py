"""Measurements, experiments and trials of gms_fast; README.md says which command answers which question.

`python -m` puts the checkout first on the path. What is looked at here is the gms_fast that is installed, which may be
another one: so the checkout comes last.
"""

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
sys.path.sort(key=lambda entry: Path(entry).resolve() == _ROOT)
