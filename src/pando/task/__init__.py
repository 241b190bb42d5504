"""The task: its file, its rows and splits, its metrics."""
