"""Pure rules: the standard library only, no clock, no I/O, no Celery. Used by both processes."""
