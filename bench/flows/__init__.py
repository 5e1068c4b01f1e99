"""What flows are, whoever runs them: their specification, their connections' options, and what the kernel says."""
