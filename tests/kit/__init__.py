"""Stand-ins for the parts of a worker, and makers of what a worker receives.

One module for each part. Time and the pool move only when a test moves them; everything else is
Celery's own, as far as it works without a broker.
"""
