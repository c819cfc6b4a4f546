"""The cases in which a batch is known to fare worse than ordinary tasks, with the reason."""

KNOWN: dict[str, str] = {}
