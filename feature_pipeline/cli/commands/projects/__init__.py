"""Commands about a project and its local servers."""
