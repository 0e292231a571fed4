"""Training one run with Lightning: the module, the trainer, and the callbacks that every run has."""
