"""Training states: nested values with tensors, taken apart into a document and named tensors, and put together."""
