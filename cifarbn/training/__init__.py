"""Training one run with Lightning: the module, the trainer, and the callbacks of every run."""
