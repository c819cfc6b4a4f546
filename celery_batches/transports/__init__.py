"""Knowledge of brokers, one file per technology. Imports neither worker nor pool."""
