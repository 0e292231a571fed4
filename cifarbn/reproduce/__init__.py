"""`python -m cifarbn.reproduce`: a source's experiments, as far as time allows, then its page."""
