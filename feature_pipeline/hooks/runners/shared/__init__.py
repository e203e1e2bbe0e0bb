"""What several runners need: logs, disk use, exit statuses."""
