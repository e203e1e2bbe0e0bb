"""Jobs and schedules that look after a deployment, and the runs that people request in bulk."""
