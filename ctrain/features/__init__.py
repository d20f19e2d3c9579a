"""Room of features: stateless views and mergeable statistics. Pure numpy; loads neither torch nor ray."""

from ctrain.features.statistics import PartitionStatistics
from ctrain.features.view import (
    LARGEST,
    Arrays,
    Column,
    FeatureView,
    RowReader,
    arrays_from_rows,
    arrays_from_table,
    as_view,
    columns_from_json,
    columns_to_json,
    feature_view,
    load_view,
)

__all__ = [
    "LARGEST",
    "Arrays",
    "Column",
    "FeatureView",
    "PartitionStatistics",
    "RowReader",
    "arrays_from_rows",
    "arrays_from_table",
    "as_view",
    "columns_from_json",
    "columns_to_json",
    "feature_view",
    "load_view",
]
