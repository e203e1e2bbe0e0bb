"""Text that people read and write: JSON and YAML with places, quotations, counts, exit statuses."""
