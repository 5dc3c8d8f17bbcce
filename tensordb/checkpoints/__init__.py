"""Checkpoints of training runs: state dict to named tensors and back, history, retention, saving in the background."""
