"""What this package knows of brokers, one file per technology. Imports neither worker nor pool."""
