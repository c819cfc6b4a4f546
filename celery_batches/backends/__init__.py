"""Knowledge of result backends, one file per technology. Used in the pool."""
