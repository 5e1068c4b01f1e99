"""Results for people: live progress, the terminal summary. Needs neither root nor Mininet."""
