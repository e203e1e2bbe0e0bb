"""Complete a generation and switch the view to it."""
