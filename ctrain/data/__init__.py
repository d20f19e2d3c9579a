"""Room of data: landed folders become accepted and quarantined rows. Loads Ray only when it ingests."""

from ctrain.data.contract import contract_columns, contract_faults
from ctrain.data.ingest import ingest
from ctrain.data.land import FileSource, seal_partition
from ctrain.data.read import Dataset, Features

__all__ = [
    "Dataset",
    "Features",
    "FileSource",
    "contract_columns",
    "contract_faults",
    "ingest",
    "seal_partition",
]
