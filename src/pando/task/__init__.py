"""The task: its file, its rows and splits, its metrics."""

from pando.task.file import Task
from pando.task.rows import Example

__all__ = ["Example", "Task"]
