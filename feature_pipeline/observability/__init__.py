"""Metrics for operators, by OpenTelemetry: needs the extra `otel`.

What belongs here: reading the archive, the tables and Dagster as samples (`state`), keeping the
samples until a collector asks for them (`meters`), the text endpoint (`endpoint`), and connecting a
process that reports its own counts (`push`). Not here: names of metrics (`model.instruments`),
counting where work is done (`feature_pipeline.measure`).
"""
