"""The bench suite: Holdfast against what one would use instead, measured side by side.

Run it with ``python -m bench``. What is measured, and how, is in ``bench/README.md``.
"""
