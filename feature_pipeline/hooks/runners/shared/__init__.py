"""What several runners need: ends of attempts, logs and disk use."""
