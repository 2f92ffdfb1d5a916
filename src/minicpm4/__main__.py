"""``python -m minicpm4`` is the command ``minicpm4``."""

from minicpm4.cli import main

if __name__ == "__main__":
    main()
