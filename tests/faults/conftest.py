"""The fixtures of the integration tests."""

from integration.conftest import backend, broker, deploy, reports

__all__ = ("backend", "broker", "deploy", "reports")
