"""`python -m aioraft`: the same as the command `aioraft`."""

from aioraft._cli import run

if __name__ == "__main__":
    run()
