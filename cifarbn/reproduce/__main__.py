"""The command."""

from cifarbn.reproduce.suite import main

if __name__ == "__main__":
    main()
