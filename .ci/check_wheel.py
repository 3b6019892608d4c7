"""Checks the installed wheel: `python .ci/check_wheel.py compiled | pure`. Three lines of it draw digits.

A file, because one line for a shell would need quoting in pyproject.toml, in a workflow and in a test.
"""

import sys

import gms_fast

model = gms_fast.load("digits")
x = gms_fast.sample(model, steps=5, n=4)

kind = sys.argv[1]
chosen = gms_fast.backends()["chosen"]["cpu"]
wanted = {"compiled": "cpp", "pure": "torch"}[kind]
if chosen != wanted:
    raise SystemExit(f"a {kind} wheel must run {wanted} on the CPU: got {chosen}, {gms_fast.backends()['missing']}")
if x.shape != (4, 1, 8, 8) or not -1 <= x.min() < -0.9 < 0.5 < x.max() <= 1:
    raise SystemExit(f"digits must be (4, 1, 8, 8) in [-1, 1], black with white: got {tuple(x.shape)}")
print(f"gms_fast {gms_fast.__version__} from {gms_fast.__file__}: four digits by {chosen}")
