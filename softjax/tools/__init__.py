"""Tools of the command line: demo, explain and audit. They use the library and are not part of it."""
