"""`python -m pando` is the `pando` command."""

from pando.cli import main

if __name__ == "__main__":
    main()
