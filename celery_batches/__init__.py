"""Batch tasks for Celery: the worker buffers calls, and the body gets them as a list."""

from importlib.metadata import version

from .core.batch_info import BatchInfo
from .request import SimpleRequest
from .task import Batches

__all__ = ("BatchInfo", "Batches", "SimpleRequest")

__version__ = version("celery-batches")
