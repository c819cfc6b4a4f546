"""The pool: runs the body of a batch and applies the outcome of each request."""
