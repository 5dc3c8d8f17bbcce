"""Tensors as pictures and figures: for notebooks without dependencies, and as plots with matplotlib."""
