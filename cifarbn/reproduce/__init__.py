"""Run the experiments of a publication within a time budget and write a page: `python -m cifarbn.reproduce`."""
