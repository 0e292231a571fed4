"""Run folders: their contents, what identifies a run, and how they are read and written.

They are the only interface between training, which writes run folders, and analysis, which reads them.
"""
