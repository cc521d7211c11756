"""Tools of the command line: demos, benchmark and audit. They use the library and are not part of it."""
