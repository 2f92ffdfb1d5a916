"""lm-evaluation-harness: its model ``minicpm4``, in this process, and tasks on files that lie here.

``model`` imports lm_eval; ``tasks`` does not.
"""
