"""The five variables that decide a migration's speed, each swept by itself around a scenario."""
