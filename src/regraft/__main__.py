"""`python -m regraft`, and `torchrun -m regraft`."""

from regraft.cli import main

if __name__ == "__main__":
    main()
