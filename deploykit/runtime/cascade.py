"""A cascade: a small model answers first, and a larger one answers whatever the small one is not sure of.

Both are whole models of the same task and tokenizer, not exits of one, whose shallow layers know too little for a sure
answer (Li et al. 2021, CascadeBERT, abstract). A row's confidence is the task's, a probability.

    N rows   C labels   L tokens
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from deploykit.runtime.tasks import RuntimeTask
from deploykit.runtime.tokenizer import Encoding

Logits = NDArray[np.float32]
Answer = Callable[[Sequence[Encoding]], list[Logits]]
"""Encoded rows to one array each: (C,), or (L,C) without padding."""


def cascaded(
    encodings: Sequence[Encoding], first: Answer, last: Answer, task: RuntimeTask, threshold: float
) -> list[Logits]:
    """Answer rows, in order: by the small model where its confidence is at least `threshold`, else by the large one.

    Raises:
        DeploykitError: a logit of the small model is not finite.
    """
    answers = first(encodings)
    pairs = zip(answers, encodings, strict=True)
    unsure = [index for index, pair in enumerate(pairs) if task.confidence(*pair) < threshold]
    if unsure:
        for index, logits in zip(unsure, last([encodings[index] for index in unsure]), strict=True):
            answers[index] = logits
    return answers
