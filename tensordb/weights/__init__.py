"""Weights by the hash of what they hold: each content once, with every name it was given; deltas between them."""
