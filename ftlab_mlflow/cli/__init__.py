"""The `ftlab` command: parse, call the library, print. One file a group of verbs."""
