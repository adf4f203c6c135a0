"""What a model is fine-tuned for, one file a task."""

from collections.abc import Mapping

from deploykit.errors import UsageError
from deploykit.tasks.task import Score, Task
from deploykit.tasks.text_classification import TEXT_CLASSIFICATION
from deploykit.tasks.token_classification import TOKEN_CLASSIFICATION

__all__ = ["TASKS", "Score", "Task", "task_named"]

TASKS: Mapping[str, Task] = {task.name: task for task in (TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION)}


def task_named(name: str) -> Task:
    """Return a task.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in TASKS:
        raise UsageError("task", expected=f"one of {', '.join(TASKS)}", found=repr(name), next_step="name the task")
    return TASKS[name]
