"""Metrics for operators, by OpenTelemetry: needs the extra `otel`.

What belongs here: reading what the archive, the tables and Dagster hold as samples (`state`),
keeping them for whoever collects (`meters`), the text endpoint (`endpoint`), and connecting a
process that reports what it does (`push`). Not here: names of metrics (`model.instruments`),
counting where work is done (`feature_pipeline.measure`).
"""
