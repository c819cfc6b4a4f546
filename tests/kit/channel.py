"""The channel that a message came on."""

from celery_batches.testing.broker import Channel

__all__ = ("Channel",)
