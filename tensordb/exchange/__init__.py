"""Data of other libraries and formats: into a dataset and out of it, in bounded memory.

One file a family. Each is imported when it is first needed, since most need a library that takes long to load.
"""
