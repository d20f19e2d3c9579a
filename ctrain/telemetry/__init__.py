"""Room of telemetry: every metric name and log field once, with its unit."""
