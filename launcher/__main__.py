"""`python -m launcher` is `graft`."""

from launcher.cli import main

if __name__ == "__main__":
    main()
