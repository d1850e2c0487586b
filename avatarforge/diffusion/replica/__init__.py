"""The Serve replica that takes tasks from the trackers: deployment, worker, reports and draining."""
