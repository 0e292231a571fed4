"""The command line: config composition, checks of user input, error messages and sweeps."""
