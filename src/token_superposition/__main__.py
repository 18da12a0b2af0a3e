"""`python -m token_superposition` is the command `tst`."""

from token_superposition.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
