"""Which generation the view shows, and when it changes."""
