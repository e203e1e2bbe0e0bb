"""Maintenance jobs and schedules of a deployment, and bulk requests by users."""
