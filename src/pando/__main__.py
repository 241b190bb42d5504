"""`python -m pando` is the `pando` command."""

from pando.cli import process

if __name__ == "__main__":
    process()
