"""What is asked of a model, and how its answer is checked:
one file a task (tasks/word_count.py lists what it holds).
"""
