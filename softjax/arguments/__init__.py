"""Arguments of the public functions: the table of their roles, their checks, their types, and their texts in `help`."""
