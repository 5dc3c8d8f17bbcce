"""Datasets of records: create, insert, find, sample, page through, change and delete."""
