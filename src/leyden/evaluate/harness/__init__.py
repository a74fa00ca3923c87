"""lm-evaluation-harness: Leyden's models as models of its, and its tasks as tasks of ``leyden eval``.

It is an extra (``pip install 'leyden[lm-eval]'``), so nothing here is imported before a task of it is asked for.
"""
