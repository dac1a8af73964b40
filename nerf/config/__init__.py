"""The command line: flags, presets, and the frozen options they become. Imports no torch."""
