"""Run folders: what they hold, what makes two runs the same, and how they are read and kept.

The only interface between training, which writes run folders, and analysis, which reads them.
"""
