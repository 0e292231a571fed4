"""What stands between a user's command line and the code: errors, composition of configs, sweeps."""
