"""Batch tasks for Celery: the worker buffers calls, and the body gets them as a list."""

from importlib.metadata import version

from .client.errors import SendError, SendOperationalError
from .core.batch_info import BatchInfo
from .request import SimpleRequest
from .task import Batches

__all__ = ("BatchInfo", "Batches", "SendError", "SendOperationalError", "SimpleRequest")

__version__ = version("celery-batches")
