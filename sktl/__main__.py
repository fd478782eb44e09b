"""``python -m sktl``: the command line."""

from sktl.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
