"""Running policies, judging them, and reporting what was found."""
