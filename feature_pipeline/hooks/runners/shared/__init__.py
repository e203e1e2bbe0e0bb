"""What several runners need: logs and disk use."""
