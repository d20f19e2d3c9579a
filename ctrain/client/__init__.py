"""Room of the client: Python over HTTP; imports only records, errors and spec."""

from ctrain.client.client import Client, Prediction
from ctrain.client.status import Status

__all__ = ["Client", "Prediction", "Status"]
