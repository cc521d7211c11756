"""The command line's tools, which use the library and are no part of it: demos, benchmark and audit."""
