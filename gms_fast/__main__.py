"""`python -m gms_fast`, the same as the command `gms-fast`."""

from gms_fast.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
