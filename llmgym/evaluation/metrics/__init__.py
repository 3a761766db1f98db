"""What a run says: service levels, fairness, jobs."""
