"""The callbacks that every run has."""
