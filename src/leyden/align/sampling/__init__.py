"""Rejection sampling: responses drawn at several temperatures, graded, and the best and most various kept as chats.

Reading order: ``asking.py`` (drawing, resumable), ``grading.py`` (several rewards as one), ``choice.py`` (the best, and
variety among them), ``embeddings.py``, ``build.py`` (``leyden sample``); ``pivots.py`` (``leyden
pivots``).
"""
