"""Room of monitoring: windows of live traffic, joined labels, drift. alibi-detect is imported lazily."""
