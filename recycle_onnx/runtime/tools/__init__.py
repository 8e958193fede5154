"""Tools: functions that a model may ask for.

They are offered through its chat template, and calls are read as they are written.
"""
